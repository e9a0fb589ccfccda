#include "cuda/device.cuh"
#include "train_gpt_v2/kernels/cuda.h"

namespace train_gpt_v2 {
namespace {

// One thread per Philox block: 8 columns of one row, two neighbours in each of four runs of 32 columns.
__global__ void dropout_scale_kernel(Dropout dropout, std::uint32_t site, const std::uint32_t* rows, std::int64_t count,
                                     std::int64_t columns, std::int64_t groups, float* out) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= count * groups) return;
  const std::int64_t i = at / groups;
  const auto group = static_cast<std::uint32_t>(at % groups);
  const uint4 words = cuda::keep_words(dropout, site, rows[i], group);
  const unsigned word[4] = {words.x, words.y, words.z, words.w};
  for (int w = 0; w < 4; ++w) {
    for (int half = 0; half < 2; ++half) {
      const std::int64_t column = static_cast<std::int64_t>(group / 16) * 128 + w * 32 + group % 16 * 2 + half;
      if (column >= columns) continue;
      const unsigned draw = half == 0 ? word[w] & 0xFFFFu : word[w] >> 16;
      out[i * columns + column] = draw >= dropout.threshold ? dropout.scale : 0.0f;
    }
  }
}

}  // namespace

int launch_dropout_scale(const Dropout& dropout, std::uint32_t site, const std::uint32_t* rows, std::int64_t count,
                         std::int64_t columns, float* out, void* stream) {
  if (count == 0 || columns == 0) return 0;
  const std::int64_t groups = (columns + 127) / 128 * 16;
  constexpr int kThreads = 256;
  const std::int64_t blocks = (count * groups + kThreads - 1) / kThreads;
  dropout_scale_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      dropout, site, rows, count, columns, groups, out);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace train_gpt_v2
