// Dropout + residual + LayerNorm and its backward pass, the double LayerNorm of the scored rows.

#include <algorithm>

#include "device.cuh"

namespace train_gpt_v2::cuda {
namespace {

constexpr float kLnEps = 1e-5f;
constexpr std::int64_t kForwardWarps = 5280, kBackwardWarps = 2640;  // the latter is part of the order of summation

__device__ std::uint32_t row_id(const DropoutPlace& place, std::int64_t r) {
  return place.rows ? place.rows[r] : 0;
}

struct Moments {
  float mean, rstd;
};

// Two sums, so that a large mean costs no digits.
__device__ Moments row_moments(const float (&x)[8], const Columns& c, BlockSum<1>& first, BlockSum<1>& second) {
  float sum[1] = {((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]))};
  block_sum(sum, first);
  const float mean = sum[0] / static_cast<float>(c.width);
  float square[1] = {0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float d = c.has(i / 2) ? x[i] - mean : 0.f;
    square[0] = fmaf(d, d, square[0]);
  }
  block_sum(square, second);
  return {mean, rsqrtf(square[0] / static_cast<float>(c.width) + kLnEps)};
}

__device__ void normalise(const float (&x)[8], const Moments& m, const float (&gamma)[8], const float (&beta)[8],
                          float (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) out[i] = fmaf((x[i] - m.mean) * m.rstd, gamma[i], beta[i]);
}

template <typename Branch, typename Out>
__global__ void drop_residual_ln_kernel(DropResidualLn a, const Branch* branch, Out* out) {
  __shared__ BlockSum<1> first, second;
  const Columns c(static_cast<int>(a.width));
  float bias[8] = {}, gamma[8] = {}, beta[8] = {};
  if (a.bias && branch) load_columns(a.bias, c, bias);
  if (out) {
    load_columns(a.gamma, c, gamma);
    load_columns(a.beta, c, beta);
  }
  const bool drop = a.place.dropout.threshold != 0;
  for (std::int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
    float x[8] = {};
    if (a.residual_in) load_columns(a.residual_in + r * a.width, c, x);
    if (branch) {
      float v[8];
      load_columns(branch + r * a.branch.stride, c, v);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] += bias[i];
      if (drop) drop_columns(a.place, row_id(a.place, r), v);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] += v[i];
      store_columns(a.residual_out + r * a.width, c, x);
    }
    if (!out) continue;
    const Moments m = row_moments(x, c, first, second);
    if (threadIdx.x == 0) {
      a.mean[r] = m.mean;
      a.rstd[r] = m.rstd;
    }
    float y[8];
    normalise(x, m, gamma, beta, y);
    store_columns(out + r * a.out.stride, c, y);
  }
}

// What LayerNorm adds to the gradient of its input; the gradients of gamma and beta go into the sums.
__device__ void ln_backward(const float (&d)[8], const float (&x)[8], const Moments& m, const float (&gamma)[8],
                            const Columns& c, BlockSum<2>& shared, float (&d_gamma)[8], float (&d_beta)[8],
                            float (&dx)[8]) {
  float sums[2] = {0, 0};
  float normal[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    normal[i] = c.has(i / 2) ? (x[i] - m.mean) * m.rstd : 0.f;
    dx[i] = d[i] * gamma[i];
    sums[0] += dx[i];
    sums[1] = fmaf(dx[i], normal[i], sums[1]);
    d_gamma[i] = fmaf(d[i], normal[i], d_gamma[i]);
    d_beta[i] += d[i];
  }
  block_sum(sums, shared);
  const float mean = sums[0] / static_cast<float>(c.width), slope = sums[1] / static_cast<float>(c.width);
#pragma unroll
  for (int i = 0; i < 8; ++i) dx[i] = m.rstd * (dx[i] - mean - normal[i] * slope);
}

template <typename Grad, typename Branch>
__global__ void ln_backward_drop_kernel(LnBackwardDrop a, const Grad* d_out, Branch* d_branch, float* partial) {
  __shared__ BlockSum<2> shared[2];  // by turns: one barrier a row
  const Columns c(static_cast<int>(a.width));
  float gamma[8] = {}, d_gamma[8] = {}, d_beta[8] = {}, d_bias[8] = {};
  if (d_out) load_columns(a.gamma, c, gamma);
  const bool drop = a.place.dropout.threshold != 0;
  int parity = 0;
  for (std::int64_t r = blockIdx.x; r < a.rows; r += gridDim.x, parity ^= 1) {
    float v[8];
    load_columns(a.d_residual + r * a.width, c, v);
    if (d_out) {
      float d[8], x[8], dx[8];
      load_columns(d_out + r * a.d_out.stride, c, d);
      load_columns(a.x + r * a.width, c, x);
      ln_backward(d, x, {a.mean[r], a.rstd[r]}, gamma, c, shared[parity], d_gamma, d_beta, dx);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] += dx[i];
      store_columns(a.d_residual + r * a.width, c, v);
    }
    if (!d_branch) continue;
    if (drop) drop_columns(a.place, row_id(a.place, r), v);
    store_columns(d_branch + r * a.d_branch.stride, c, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) d_bias[i] += v[i];
  }
  float* out = partial + static_cast<std::int64_t>(blockIdx.x) * 3 * a.width;
  store_columns(out, c, d_gamma);
  store_columns(out + a.width, c, d_beta);
  store_columns(out + 2 * a.width, c, d_bias);
}

template <typename Out>
__global__ void double_ln_gather_kernel(DoubleLnGather a, Out* out) {
  __shared__ BlockSum<1> shared[4];
  const Columns c(static_cast<int>(a.width));
  const std::int64_t r = blockIdx.x;
  float x[8], y[8], z[8], gamma[8], beta[8];
  load_columns(a.x + a.rows[r] * a.width, c, x);
  load_columns(a.gamma1, c, gamma);
  load_columns(a.beta1, c, beta);
  const Moments first = row_moments(x, c, shared[0], shared[1]);
  normalise(x, first, gamma, beta, y);
  store_columns(a.y + r * a.width, c, y);
  load_columns(a.gamma2, c, gamma);
  load_columns(a.beta2, c, beta);
  const Moments second = row_moments(y, c, shared[2], shared[3]);
  normalise(y, second, gamma, beta, z);
  store_columns(out + r * a.out.stride, c, z);
  if (threadIdx.x == 0) {
    reinterpret_cast<float4*>(a.statistics)[r] = make_float4(first.mean, first.rstd, second.mean, second.rstd);
  }
}

template <typename Grad>
__global__ void double_ln_gather_backward_kernel(DoubleLnGatherBackward a, const Grad* d_out, float* partial) {
  __shared__ BlockSum<2> outer, inner;
  const DoubleLnGather& f = a.forward;
  const Columns c(static_cast<int>(f.width));
  float gamma1[8], gamma2[8], d_gamma1[8] = {}, d_beta1[8] = {}, d_gamma2[8] = {}, d_beta2[8] = {};
  load_columns(f.gamma1, c, gamma1);
  load_columns(f.gamma2, c, gamma2);
  for (std::int64_t r = blockIdx.x; r < f.count; r += gridDim.x) {
    const float4 s = reinterpret_cast<const float4*>(f.statistics)[r];
    float d[8], x[8], y[8], dy[8], dx[8];
    load_columns(d_out + r * a.d_out.stride, c, d);
    load_columns(f.y + r * f.width, c, y);
    load_columns(f.x + f.rows[r] * f.width, c, x);
    ln_backward(d, y, {s.z, s.w}, gamma2, c, outer, d_gamma2, d_beta2, dy);
    ln_backward(dy, x, {s.x, s.y}, gamma1, c, inner, d_gamma1, d_beta1, dx);
    store_columns(a.d_x + f.rows[r] * f.width, c, dx);
  }
  float* out = partial + static_cast<std::int64_t>(blockIdx.x) * 4 * f.width;
  store_columns(out, c, d_gamma1);
  store_columns(out + f.width, c, d_beta1);
  store_columns(out + 2 * f.width, c, d_gamma2);
  store_columns(out + 3 * f.width, c, d_beta2);
}

int blocks_for(std::int64_t rows, std::int64_t width, std::int64_t warps) {
  return static_cast<int>(std::min(rows, std::max<std::int64_t>(1, warps / (row_threads(width) / 32))));
}

}  // namespace

void drop_residual_ln(const DropResidualLn& a, cudaStream_t stream) {
  with_type(a.branch, [&](auto* branch) {
    with_type(a.out, [&](auto* out) {
      drop_residual_ln_kernel<<<blocks_for(a.rows, a.width, kForwardWarps), row_threads(a.width), 0, stream>>>(
          a, branch, out);
    });
  });
}

std::int64_t ln_backward_drop_partial(const LnBackwardDrop& a) {
  return blocks_for(a.rows, a.width, kBackwardWarps) * 3 * a.width;
}

void ln_backward_drop(const LnBackwardDrop& a, float* partial, cudaStream_t stream) {
  const int blocks = blocks_for(a.rows, a.width, kBackwardWarps);
  with_type(a.d_out, [&](auto* d_out) {
    with_type(a.d_branch, [&](auto* d_branch) {
      ln_backward_drop_kernel<<<blocks, row_threads(a.width), 0, stream>>>(a, d_out, d_branch, partial);
    });
  });
  ColumnOutputs outputs{{}, 3, a.width, a.accumulate};
  if (a.d_out.data) {
    outputs.out[0] = a.d_gamma;
    outputs.out[1] = a.d_beta;
  }
  if (a.d_branch.data) outputs.out[2] = a.d_bias;
  finish_column_sums(partial, blocks, 3 * a.width, outputs, stream);
}

void double_ln_gather(const DoubleLnGather& a, cudaStream_t stream) {
  with_type(a.out, [&](auto* out) {
    double_ln_gather_kernel<<<static_cast<unsigned>(a.count), row_threads(a.width), 0, stream>>>(a, out);
  });
}

std::int64_t double_ln_gather_backward_partial(const DoubleLnGatherBackward& a) {
  return blocks_for(a.forward.count, a.forward.width, kBackwardWarps) * 4 * a.forward.width;
}

void double_ln_gather_backward(const DoubleLnGatherBackward& a, float* partial, cudaStream_t stream) {
  const std::int64_t width = a.forward.width;
  cudaMemsetAsync(a.d_x, 0, static_cast<std::size_t>(a.total_rows * width) * sizeof(float), stream);
  const int blocks = blocks_for(a.forward.count, a.forward.width, kBackwardWarps);
  with_type(a.d_out, [&](auto* d_out) {
    double_ln_gather_backward_kernel<<<blocks, row_threads(width), 0, stream>>>(a, d_out, partial);
  });
  const ColumnOutputs outputs{{a.d_gamma1, a.d_beta1, a.d_gamma2, a.d_beta2}, 4, width, a.accumulate};
  finish_column_sums(partial, blocks, 4 * width, outputs, stream);
}

}  // namespace train_gpt_v2::cuda
