// The norm of the gradients and the optimizer pass over pieces of tensors; conversion to bf16.

#include "device.cuh"

namespace train_gpt_v2::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void convert_kernel(Half* to, const float* from, std::int64_t count) {
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (at + 8 <= count) {
    float v[8];
    load8(from + at, v);
    store8(to + at, v);
    return;
  }
  for (std::int64_t j = at; j < count; ++j) store(to + j, from[j]);
}

__device__ double block_sum_of_doubles(double v) {
  __shared__ double of_warp[kThreads / 32];
  v = warp_sum(v);
  if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  double total = 0;
  for (const double w : of_warp) total += w;
  return total;
}

__device__ bool aligned16(const void* p) {
  return (reinterpret_cast<std::uintptr_t>(p) & 15) == 0;
}

// A thread sums at most kPieceElements / kThreads squares in float, everything above in double.
__global__ void sum_of_squares_kernel(const float* const* tensors, const Piece* pieces, double* sums) {
  const Piece piece = pieces[blockIdx.x];
  const float* x = tensors[piece.tensor] + piece.begin;
  float mine = 0;
  int j = static_cast<int>(threadIdx.x);
  if (aligned16(x)) {
    float part[4] = {};
#pragma unroll 4
    for (; j < piece.count / 4; j += kThreads) {
      const float4 v = reinterpret_cast<const float4*>(x)[j];
      part[0] = fmaf(v.x, v.x, part[0]);
      part[1] = fmaf(v.y, v.y, part[1]);
      part[2] = fmaf(v.z, v.z, part[2]);
      part[3] = fmaf(v.w, v.w, part[3]);
    }
    mine = (part[0] + part[1]) + (part[2] + part[3]);
    j = piece.count / 4 * 4 + static_cast<int>(threadIdx.x);
  }
  for (; j < piece.count; j += kThreads) mine = fmaf(x[j], x[j], mine);
  const double total = block_sum_of_doubles(static_cast<double>(mine));
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

__global__ void add_sums_kernel(const double* sums, std::int64_t count, double* total) {
  double mine = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) mine += sums[i];
  const double all = block_sum_of_doubles(mine);
  if (threadIdx.x == 0) *total = all;
}

// torch.optim.AdamW: p *= 1 - lr wd; m, v; p -= lr / c1 m / (sqrt(v) / sqrt(c2) + eps).
__device__ void update(const AdamWCoefficients& c, float g, float& m, float& v, float& p) {
  g *= c.gradient_scale;
  m = fmaf(c.one_minus_beta1, g - m, m);
  v = fmaf(g * g, c.one_minus_beta2, v * c.beta2);
  p *= c.decay;
  p -= c.step_size * (m / fmaf(sqrtf(v), c.inverse_root_correction2, c.eps));
}

__global__ void adamw_kernel(const AdamWTarget* tensors, const Piece* pieces) {
  const Piece piece = pieces[blockIdx.x];
  AdamWTarget t = tensors[piece.tensor];
  t.parameter += piece.begin;
  t.exp_avg += piece.begin;
  t.exp_avg_sq += piece.begin;
  if (t.gradient) t.gradient += piece.begin;
  if (t.ema) t.ema += piece.begin;
  Half* copy = t.copy ? reinterpret_cast<Half*>(t.copy) + piece.begin : nullptr;
  const AdamWCoefficients& c = t.c;
  int j = static_cast<int>(threadIdx.x);
  const bool vectors = aligned16(t.parameter) && aligned16(t.exp_avg) && aligned16(t.exp_avg_sq) &&
                       aligned16(t.gradient) && aligned16(t.ema) && aligned16(copy);
  if (vectors) {
#pragma unroll 2
    for (; j < piece.count / 4; j += kThreads) {
      const float4 g = t.gradient ? reinterpret_cast<const float4*>(t.gradient)[j] : make_float4(0, 0, 0, 0);
      float4 m = reinterpret_cast<float4*>(t.exp_avg)[j], v = reinterpret_cast<float4*>(t.exp_avg_sq)[j];
      float4 p = reinterpret_cast<float4*>(t.parameter)[j];
      update(c, g.x, m.x, v.x, p.x);
      update(c, g.y, m.y, v.y, p.y);
      update(c, g.z, m.z, v.z, p.z);
      update(c, g.w, m.w, v.w, p.w);
      reinterpret_cast<float4*>(t.exp_avg)[j] = m;
      reinterpret_cast<float4*>(t.exp_avg_sq)[j] = v;
      reinterpret_cast<float4*>(t.parameter)[j] = p;
      if (copy) reinterpret_cast<uint2*>(copy)[j] = make_uint2(pack2(p.x, p.y), pack2(p.z, p.w));
      if (t.ema) {
        float4 e = reinterpret_cast<float4*>(t.ema)[j];
        e.x = fmaf(c.one_minus_ema, p.x - e.x, e.x);
        e.y = fmaf(c.one_minus_ema, p.y - e.y, e.y);
        e.z = fmaf(c.one_minus_ema, p.z - e.z, e.z);
        e.w = fmaf(c.one_minus_ema, p.w - e.w, e.w);
        reinterpret_cast<float4*>(t.ema)[j] = e;
      }
    }
    j = piece.count / 4 * 4 + static_cast<int>(threadIdx.x);
  }
  for (; j < piece.count; j += kThreads) {
    update(c, t.gradient ? t.gradient[j] : 0.f, t.exp_avg[j], t.exp_avg_sq[j], t.parameter[j]);
    const float p = t.parameter[j];
    if (copy) store(copy + j, p);
    if (t.ema) t.ema[j] = fmaf(c.one_minus_ema, p - t.ema[j], t.ema[j]);
  }
}

}  // namespace

void convert(Bf16* to, const float* from, std::int64_t count, cudaStream_t stream) {
  const std::int64_t blocks = (count + kThreads * 8 - 1) / (kThreads * 8);
  convert_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(reinterpret_cast<Half*>(to), from, count);
}

void sum_of_squares(const float* const* tensors, const Piece* pieces, std::int64_t count, double* sums, double* total,
                    cudaStream_t stream) {
  sum_of_squares_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(tensors, pieces, sums);
  add_sums_kernel<<<1, kThreads, 0, stream>>>(sums, count, total);
}

void adamw(const AdamWTarget* tensors, const Piece* pieces, std::int64_t count, cudaStream_t stream) {
  adamw_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(tensors, pieces);
}

}  // namespace train_gpt_v2::cuda
