// Kernels for processors with AVX2 and FMA; compiled for them alone (layer.cmake).
#ifdef TGV2_X86_64
#define TGV2_ISA isa_avx2
#define TGV2_SIMD_AVX2
#include "isa/kernels.h"
#endif
