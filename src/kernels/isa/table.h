#pragma once
// What each instruction set provides: serial functions over a range of rows, columns or tasks. kernels.cc splits the
// work among threads; nothing here knows of threads, and nothing here may use a non-inline library template (its code
// would be compiled for one processor and linked for all).

#include <cstddef>
#include <cstdint>

#include "train_gpt_v2/kernels/kernels.h"

namespace train_gpt_v2 {

// Panels [panel_begin, panel_end) of op(A) by column panels [column_begin, column_end) of the packed op(B).
struct GemmTask {
  std::int64_t panel_begin, panel_end, column_begin, column_end;
  const float* packed_b;  // all of B, gemm_pack_b of every panel
  float* packed_a;        // scratch: (panel_end - panel_begin) * tile_rows * gemm_block_units
  float* float_c;         // scratch for a bf16 C in several k blocks: the task's part of C as float
};

// AdamW's numbers of one tensor and step, rounded to float once.
struct AdamWCoefficients {
  float one_minus_beta1, beta2, one_minus_beta2, eps, decay, step_size, inverse_root_correction2, gradient_scale,
      one_minus_ema;
};

struct KernelTable {
  void (*keep_bits)(const Dropout&, std::uint32_t site, std::uint32_t row, std::uint32_t block, std::uint32_t bits[4]);
  void (*dropout_scale_row)(const Dropout&, std::uint32_t site, std::uint32_t row, std::int64_t columns, float* out);

  int tile_rows, tile_columns;
  std::int64_t (*gemm_units)(const Gemm&);
  std::int64_t (*gemm_block_units)(std::int64_t units);
  void (*gemm_pack_b)(const Gemm&, std::int64_t panel, float* packed);
  void (*gemm_task)(const Gemm&, const GemmTask&);

  // Rows [begin, end); `partial` receives this range's part of the column sums: 3, 1 or 4 (and one of scratch) rows.
  void (*drop_residual_ln)(const DropResidualLn&, std::int64_t begin, std::int64_t end);
  void (*ln_backward_drop)(const LnBackwardDrop&, std::int64_t begin, std::int64_t end, float* partial);
  void (*bias_gelu)(const BiasGelu&, std::int64_t begin, std::int64_t end);
  void (*bias_gelu_backward)(const BiasGeluBackward&, std::int64_t begin, std::int64_t end, float* partial);
  std::size_t (*attention_scratch)(const Attention&, std::int64_t length);
  void (*attention)(const Attention&, std::int64_t segment, std::int64_t head, void* scratch);
  void (*attention_backward)(const AttentionBackward&, std::int64_t segment, std::int64_t head, void* scratch);
  void (*double_ln_gather)(const DoubleLnGather&, std::int64_t begin, std::int64_t end);
  void (*double_ln_gather_backward)(const DoubleLnGatherBackward&, std::int64_t begin, std::int64_t end,
                                    float* partial);
  void (*cross_entropy)(const CrossEntropy&, std::int64_t row);
  void (*column_sum)(const ColumnSum&, std::int64_t begin, std::int64_t end);  // columns
  void (*add_partials)(const float* partial, std::int64_t chunks, std::int64_t stride, std::int64_t begin,
                       std::int64_t end, float* out, bool accumulate);
  void (*embed_pack)(const EmbedPack&, std::int64_t begin, std::int64_t end);
  void (*embed_scatter)(const EmbedScatter&, std::int64_t begin, std::int64_t end);  // columns
  void (*convert)(Bf16* to, const float* from, std::int64_t count);
  double (*sum_of_squares)(const float* x, std::int64_t count);
  void (*adamw)(const AdamWCoefficients&, const AdamWTensor&, std::int64_t begin, std::int64_t count,
                bool has_gradient);
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
