#pragma once
// What each instruction set provides: serial functions over a range of rows, columns or tasks. kernels.cc splits the
// work among threads; nothing here knows of threads, and nothing here may use a non-inline library template (its code
// would be compiled for one processor and linked for all).

#include <cstdint>

#include "train_gpt_v2/kernels/dropout.h"
#include "train_gpt_v2/kernels/isa.h"

namespace train_gpt_v2 {

struct KernelTable {
  void (*keep_bits)(const Dropout&, std::uint32_t site, std::uint32_t row, std::uint32_t block, std::uint32_t bits[4]);
  void (*dropout_scale_row)(const Dropout&, std::uint32_t site, std::uint32_t row, std::int64_t columns, float* out);
};

namespace isa_portable {
extern const KernelTable kTable;
}
#ifdef TGV2_X86_64
namespace isa_avx2 {
extern const KernelTable kTable;
}
namespace isa_avx512 {
extern const KernelTable kTable;
}
namespace isa_avx512_bf16 {
extern const KernelTable kTable;
}
#endif

const KernelTable& kernel_table(Isa isa);

}  // namespace train_gpt_v2
