// Kernels for processors with AVX-512 and its bf16 instructions; compiled for them alone (layer.cmake).
#ifdef TGV2_X86_64
#define TGV2_ISA isa_avx512_bf16
#define TGV2_SIMD_AVX512
#define TGV2_NATIVE_BF16
#include "isa/kernels.h"
#endif
