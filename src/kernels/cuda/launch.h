#pragma once
// The launchers behind CudaKernels. They take the structs of kernels.h with device pointers, do not synchronise, and
// leave errors to cudaGetLastError(). `partial` is device scratch for column sums, at least the floats that the
// function of the same name with _partial asks for.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "train_gpt_v2/kernels/kernels.h"

namespace train_gpt_v2::cuda {

// rows.cu
inline constexpr std::int64_t kMaxRowWidth = 8192;  // 1024 threads of eight columns
void drop_residual_ln(const DropResidualLn& a, cudaStream_t stream);
std::int64_t ln_backward_drop_partial(const LnBackwardDrop& a);
void ln_backward_drop(const LnBackwardDrop& a, float* partial, cudaStream_t stream);
void double_ln_gather(const DoubleLnGather& a, cudaStream_t stream);
std::int64_t double_ln_gather_backward_partial(const DoubleLnGatherBackward& a);
void double_ln_gather_backward(const DoubleLnGatherBackward& a, float* partial, cudaStream_t stream);

// columns.cu. Outputs of one call lie side by side in `partial` [chunks, outputs * width]; null outputs are skipped.
struct ColumnOutputs {
  float* out[4] = {};
  int count = 0;
  std::int64_t width = 0;
  bool accumulate = false;
};
void finish_column_sums(const float* partial, int chunks, std::int64_t stride, const ColumnOutputs& outputs,
                        cudaStream_t stream);
void bias_gelu(const BiasGelu& a, cudaStream_t stream);
std::int64_t bias_gelu_backward_partial(const BiasGeluBackward& a);
void bias_gelu_backward(const BiasGeluBackward& a, float* partial, cudaStream_t stream);
std::int64_t column_sum_partial(const ColumnSum& a);
void column_sum(const ColumnSum& a, float* partial, cudaStream_t stream);

// loss.cu
void cross_entropy(const CrossEntropy& a, cudaStream_t stream);

// embedding.cu
void embed_pack(const EmbedPack& a, cudaStream_t stream);
void embed_scatter(const EmbedScatter& a, cudaStream_t stream);

// optimizer.cu. A piece is a stretch of one tensor; the tables lie on the device.
inline constexpr std::int64_t kPieceElements = 65536;
struct Piece {
  std::int32_t tensor;
  std::int32_t count;
  std::int64_t begin;
};
struct AdamWCoefficients {
  float one_minus_beta1, beta2, one_minus_beta2, eps, decay, step_size, inverse_root_correction2, gradient_scale,
      one_minus_ema;
};
struct AdamWTarget {
  float *parameter, *exp_avg, *exp_avg_sq;
  const float* gradient;
  float* ema;
  Bf16* copy;
  AdamWCoefficients c;
};
void convert(Bf16* to, const float* from, std::int64_t count, cudaStream_t stream);
// sums: one double a piece; total: their sum.
void sum_of_squares(const float* const* tensors, const Piece* pieces, std::int64_t count, double* sums, double* total,
                    cudaStream_t stream);
void adamw(const AdamWTarget* tensors, const Piece* pieces, std::int64_t count, cudaStream_t stream);

// attention.cu, attention_mma.cu. A tile is 64 rows of one segment.
struct AttentionTile {
  std::int32_t begin, length;  // of the segment
  std::int32_t sample, block;  // rows [64 * block, ...) of it
};
struct AttentionDevice {
  // Longest segments first, each one's tiles together: neighbouring blocks then share its rows in the L2 cache. Within
  // a segment those with most work come first.
  const AttentionTile *by_query, *by_key;
  std::int64_t tiles = 0;
  std::int64_t rows = 0;  // packed rows of all segments
  std::int64_t mask_blocks = 0;
  uint4* mask =
      nullptr;  // [heads, rows, mask_blocks]: keep bits of 128 keys; bit c / 2 % 16 + 16 (c % 2) of word c / 32
  float4* stats = nullptr;  // [heads, rows]: log2 of the sum, dO.O, dO.bias
};
// Any head size up to kMaxHeadDim and both types; slow.
inline constexpr std::int64_t kMaxHeadDim = 256;
void attention_mask(const Attention& a, const AttentionDevice& d, cudaStream_t stream);
void attention_simple(const Attention& a, const AttentionDevice& d, cudaStream_t stream);
void attention_simple_backward(const AttentionBackward& a, const AttentionDevice& d, cudaStream_t stream);
// bf16 with head size 64, on tensor cores.
bool attention_mma_takes(const Attention& a);
void attention_mma(const Attention& a, const AttentionDevice& d, cudaStream_t stream);
void attention_mma_backward(const AttentionBackward& a, const AttentionDevice& d, cudaStream_t stream);

}  // namespace train_gpt_v2::cuda
