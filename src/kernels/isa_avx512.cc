// Kernels for processors with AVX-512 F/BW/DQ/VL; compiled for them alone (layer.cmake).
#ifdef TGV2_X86_64
#define TGV2_ISA isa_avx512
#define TGV2_SIMD_AVX512
#include "isa/kernels.h"
#endif
