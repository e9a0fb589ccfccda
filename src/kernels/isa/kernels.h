#pragma once
// The body of one instruction set's translation unit: TGV2_ISA names its namespace, one of the simd_*.h its vectors.

#include <cstdint>
#include <cstring>

#include "table.h"
#include "train_gpt_v2/kernels/bf16.h"

#if defined(TGV2_SIMD_AVX512) || defined(TGV2_SIMD_AVX2)
#include <immintrin.h>
#endif

namespace train_gpt_v2::TGV2_ISA {
namespace {

#if defined(TGV2_SIMD_AVX512)
#include "simd_avx512.h"
#elif defined(TGV2_SIMD_AVX2)
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

#include "vector_loops.h"

}  // namespace

extern const KernelTable kTable;
const KernelTable kTable = {
    .keep_bits = keep_bits,
    .dropout_scale_row = dropout_scale_row,
};

}  // namespace train_gpt_v2::TGV2_ISA
