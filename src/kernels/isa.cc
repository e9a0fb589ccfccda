#include "train_gpt_v2/kernels/isa.h"

#include <initializer_list>

#include "isa/table.h"

namespace train_gpt_v2 {

bool isa_available(Isa isa) {
#ifdef TGV2_X86_64
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512) return avx512;
  if (isa == Isa::kAvx512Bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return isa == Isa::kPortable;
}

Isa best_isa() {
  for (const Isa isa : {Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2}) {
    if (isa_available(isa)) return isa;
  }
  return Isa::kPortable;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kPortable:
      break;
  }
  return "portable";
}

const KernelTable& kernel_table(Isa isa) {
#ifdef TGV2_X86_64
  if (isa == Isa::kAvx2) return isa_avx2::kTable;
  if (isa == Isa::kAvx512) return isa_avx512::kTable;
  if (isa == Isa::kAvx512Bf16) return isa_avx512_bf16::kTable;
#endif
  return isa_portable::kTable;
}

}  // namespace train_gpt_v2
