// Kernels over strips of columns: GELU and its backward pass, sums over rows.

#include <algorithm>

#include "device.cuh"

namespace train_gpt_v2::cuda {
namespace {

constexpr int kThreads = 128, kStrip = 8 * kThreads;  // a thread owns eight neighbouring columns
constexpr int kBlocks = 1056;                         // aimed at; part of the order of summation

__device__ float sigmoid_of_double(float z, float& e) {
  e = __expf(fminf(-2.f * z, 80.f));
  return 1.f / (1.f + e);
}

constexpr float kRootTwoOverPi = 0.7978845608028654f, kCubic = 0.044715f;

// 0.5 u (1 + tanh z) = u sigmoid(2 z).
__device__ float gelu(float u) {
  float e;
  return u * sigmoid_of_double(kRootTwoOverPi * u * fmaf(kCubic * u, u, 1.f), e);
}

__device__ float gelu_derivative(float u) {
  const float square = u * u;
  float e;
  const float s = sigmoid_of_double(kRootTwoOverPi * u * fmaf(kCubic, square, 1.f), e);
  return s + 2.f * u * s * (e * s) * (kRootTwoOverPi * fmaf(3.f * kCubic, square, 1.f));  // 1 - s = e s
}

__device__ void load_bias(const float* bias, int column, int width, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = bias && column + i < width ? bias[column + i] : 0.f;
}

template <typename In, typename Out>
__global__ void bias_gelu_kernel(BiasGelu a, const In* in, Out* out) {
  const int width = static_cast<int>(a.width),
            column = static_cast<int>(blockIdx.x) * kStrip + static_cast<int>(threadIdx.x) * 8;
  if (column >= width) return;
  float bias[8];
  load_bias(a.bias, column, width, bias);
#pragma unroll 2
  for (std::int64_t r = blockIdx.y; r < a.rows; r += gridDim.y) {
    float v[8];
    load8(in + r * a.in.stride + column, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = gelu(v[i] + bias[i]);
    store8(out + r * a.out.stride + column, v);
  }
}

template <typename In, typename Grad>
__global__ void bias_gelu_backward_kernel(BiasGeluBackward a, const In* in, Grad* grad, float* partial) {
  const int width = static_cast<int>(a.width),
            column = static_cast<int>(blockIdx.x) * kStrip + static_cast<int>(threadIdx.x) * 8;
  if (column >= width) return;
  float bias[8], sum[8] = {};
  load_bias(a.bias, column, width, bias);
#pragma unroll 2
  for (std::int64_t r = blockIdx.y; r < a.rows; r += gridDim.y) {
    float u[8], g[8];
    load8(in + r * a.in.stride + column, u);
    load8(grad + r * a.grad.stride + column, g);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      g[i] *= gelu_derivative(u[i] + bias[i]);
      sum[i] += g[i];
    }
    store8(grad + r * a.grad.stride + column, g);
  }
  store8(partial + static_cast<std::int64_t>(blockIdx.y) * a.width + column, sum);
}

template <typename In>
__global__ void column_sum_kernel(ColumnSum a, const In* in, std::int64_t partial_stride, float* partial) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kStrip + threadIdx.x * 8;
  if (column >= a.columns) return;
  float sum[8] = {};
#pragma unroll 2
  for (std::int64_t r = blockIdx.y; r < a.rows; r += gridDim.y) {
    float v[8];
    load8(in + r * a.in.stride + column, v);  // may read the padding of the row
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i] += v[i];
  }
  store8(partial + blockIdx.y * partial_stride + column, sum);
}

// 32 columns by 16 groups of chunks.
__global__ void finish_kernel(const float* partial, int chunks, std::int64_t stride, ColumnOutputs outputs) {
  __shared__ float part[16][33];
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * 32 + threadIdx.x,
                     total = outputs.count * outputs.width;
  float sum = 0;
  if (column < total) {
    for (int c = static_cast<int>(threadIdx.y); c < chunks; c += 16) sum += partial[c * stride + column];
  }
  part[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || column >= total) return;
  float* out = outputs.out[column / outputs.width];
  if (!out) return;
  out += column % outputs.width;
  sum = outputs.accumulate ? *out : 0.f;
  for (int g = 0; g < 16; ++g) sum += part[g][threadIdx.x];
  *out = sum;
}

// Strips of columns by chunks of rows.
dim3 grid_for(std::int64_t rows, std::int64_t width, std::int64_t blocks) {
  const std::int64_t strips = (width + kStrip - 1) / kStrip;
  const std::int64_t chunks = std::max<std::int64_t>(1, std::min(rows, blocks / strips));
  return dim3(static_cast<unsigned>(strips), static_cast<unsigned>(chunks));
}

std::int64_t whole_vectors(std::int64_t columns) {
  return (columns + 7) / 8 * 8;
}

}  // namespace

void finish_column_sums(const float* partial, int chunks, std::int64_t stride, const ColumnOutputs& outputs,
                        cudaStream_t stream) {
  if (!outputs.out[0] && !outputs.out[1] && !outputs.out[2] && !outputs.out[3]) return;
  const std::int64_t total = outputs.count * outputs.width;
  finish_kernel<<<static_cast<unsigned>((total + 31) / 32), dim3(32, 16), 0, stream>>>(partial, chunks, stride,
                                                                                       outputs);
}

void bias_gelu(const BiasGelu& a, cudaStream_t stream) {
  with_type(a.in, [&](auto* in) {
    with_type(a.out, [&](auto* out) {
      bias_gelu_kernel<<<grid_for(a.rows, a.width, 4 * kBlocks), kThreads, 0, stream>>>(a, in, out);
    });
  });
}

std::int64_t bias_gelu_backward_partial(const BiasGeluBackward& a) {
  return grid_for(a.rows, a.width, kBlocks).y * a.width;
}

void bias_gelu_backward(const BiasGeluBackward& a, float* partial, cudaStream_t stream) {
  const dim3 grid = grid_for(a.rows, a.width, kBlocks);
  with_type(a.in, [&](auto* in) {
    with_type(a.grad,
              [&](auto* grad) { bias_gelu_backward_kernel<<<grid, kThreads, 0, stream>>>(a, in, grad, partial); });
  });
  finish_column_sums(partial, static_cast<int>(grid.y), a.width, {{a.d_bias}, 1, a.width, a.accumulate}, stream);
}

std::int64_t column_sum_partial(const ColumnSum& a) {
  return grid_for(a.rows, a.columns, kBlocks).y * whole_vectors(a.columns);
}

void column_sum(const ColumnSum& a, float* partial, cudaStream_t stream) {
  const dim3 grid = grid_for(a.rows, a.columns, kBlocks);
  const std::int64_t stride = whole_vectors(a.columns);
  with_type(a.in, [&](auto* in) { column_sum_kernel<<<grid, kThreads, 0, stream>>>(a, in, stride, partial); });
  finish_column_sums(partial, static_cast<int>(grid.y), stride, {{a.out}, 1, a.columns, a.accumulate}, stream);
}

}  // namespace train_gpt_v2::cuda
