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
#include "math.h"
#include "rows.h"
#include "loss.h"
#include "gemm.h"
#include "mini_gemm.h"
#include "attention_head.h"
#include "attention.h"
#include "attention_backward.h"

}  // namespace

extern const KernelTable kTable;
const KernelTable kTable = {
    .keep_bits = keep_bits,
    .dropout_scale_row = dropout_scale_row,
    .tile_rows = kTileRows,
    .tile_columns = kTileColumns,
    .gemm_units = gemm_units,
    .gemm_block_units = gemm_block_units,
    .gemm_pack_b = gemm_pack_b,
    .gemm_task = gemm_task,
    .drop_residual_ln = drop_residual_ln,
    .ln_backward_drop = ln_backward_drop,
    .bias_gelu = bias_gelu,
    .bias_gelu_backward = bias_gelu_backward,
    .attention_scratch = attention_scratch,
    .attention = attention,
    .attention_backward = attention_backward,
    .double_ln_gather = double_ln_gather,
    .double_ln_gather_backward = double_ln_gather_backward,
    .cross_entropy = cross_entropy,
    .column_sum = column_sum,
    .add_partials = add_partials,
    .embed_pack = embed_pack,
    .embed_scatter = embed_scatter,
    .convert = convert,
    .sum_of_squares = sum_of_squares,
    .adamw = adamw,
};

}  // namespace train_gpt_v2::TGV2_ISA
