// Cross entropy of a row of logits, its gradient in place, and the target's rank: one block a row.

#include "device.cuh"

namespace train_gpt_v2::cuda {
namespace {

constexpr int kThreads = 512;

struct Scan {
  float highest, sum;  // of exp(v - highest)
  int before;
};

__device__ void merge(Scan& a, float highest, float sum, int before) {
  const float m = fmaxf(a.highest, highest);
  a.sum = a.sum * __expf(a.highest - m) + sum * __expf(highest - m);
  a.highest = m;
  a.before += before;
}

// f(column, eight values with bias) for the columns of this thread; minus infinity past the last class.
template <typename T, typename F>
__device__ void for_columns(const T* row, const float* bias, int classes, F&& f) {
  for (int first = static_cast<int>(threadIdx.x) * 8; first < classes; first += kThreads * 8) {
    float v[8], b[8] = {};
    load8(row + first, v);  // may read the padding of the row
    if (first + 8 <= classes) {
      load8(bias + first, b);
    } else {
      for (int i = 0; first + i < classes; ++i) b[i] = bias[first + i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = first + i < classes ? v[i] + b[i] : -INFINITY;
    f(first, v);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(CrossEntropy a, T* logits) {
  __shared__ Scan of_warp[kThreads / 32];
  const std::int64_t r = blockIdx.x;
  T* row = logits + r * a.logits.stride;
  const int classes = static_cast<int>(a.classes), target = a.targets[r];
  const float value = load(row + target) + a.bias[target];
  Scan mine{value, 0.f, 0};
  for_columns(row, a.bias, classes, [&](int first, const float(&v)[8]) {
    float m = mine.highest;
#pragma unroll
    for (int i = 0; i < 8; ++i) m = fmaxf(m, v[i]);
    float sum = mine.sum * __expf(mine.highest - m);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      sum += __expf(v[i] - m);
      mine.before += v[i] > value || (v[i] == value && first + i < target);
    }
    mine.highest = m;
    mine.sum = sum;
  });
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) {
    const float highest = __shfl_xor_sync(0xffffffffu, mine.highest, offset);
    const float sum = __shfl_xor_sync(0xffffffffu, mine.sum, offset);
    const int before = __shfl_xor_sync(0xffffffffu, mine.before, offset);
    merge(mine, highest, sum, before);
  }
  if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x / 32] = mine;
  __syncthreads();  // also: every thread has read the target's logit
  Scan all = of_warp[0];
  for (int w = 1; w < kThreads / 32; ++w) merge(all, of_warp[w].highest, of_warp[w].sum, of_warp[w].before);
  if (threadIdx.x == 0) {
    a.loss[r] = all.highest + logf(all.sum) - value;
    if (a.rank) a.rank[r] = all.before;
  }
  if (!a.gradient) return;
  const float factor = a.coefficient / all.sum;
  for_columns(row, a.bias, classes, [&](int first, const float(&v)[8]) {
    float g[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      g[i] = factor * __expf(v[i] - all.highest);
      if (first + i == target) g[i] -= a.coefficient;
    }
    store8(row + first, g);
  });
}

}  // namespace

void cross_entropy(const CrossEntropy& a, cudaStream_t stream) {
  with_type(a.logits, [&](auto* logits) {
    cross_entropy_kernel<<<static_cast<unsigned>(a.rows), kThreads, 0, stream>>>(a, logits);
  });
}

}  // namespace train_gpt_v2::cuda
