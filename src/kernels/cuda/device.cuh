#pragma once
// What the CUDA kernels share: loads and stores of both number types, the counter-based keep decisions, sums over a
// block. Everything is deterministic: fixed owners, fixed orders, no atomics on floats.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "launch.h"

namespace train_gpt_v2::cuda {

using Half = __nv_bfloat16;  // the device's name for Bf16

__device__ inline float load(const float* p) {
  return *p;
}
__device__ inline float load(const Half* p) {
  return __bfloat162float(*p);
}
__device__ inline void store(float* p, float v) {
  *p = v;
}
__device__ inline void store(Half* p, float v) {
  *p = __float2bfloat16_rn(v);
}

// Two neighbouring numbers; the first column is even.
__device__ inline float2 load2(const float* p) {
  return *reinterpret_cast<const float2*>(p);
}
__device__ inline float2 load2(const Half* p) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(p));
}
__device__ inline void store2(float* p, float2 v) {
  *reinterpret_cast<float2*>(p) = v;
}
__device__ inline void store2(Half* p, float2 v) {
  *reinterpret_cast<__nv_bfloat162*>(p) = __float22bfloat162_rn(v);
}

// Eight neighbouring numbers, 16-byte aligned.
__device__ inline void load8(const float* p, float (&v)[8]) {
  const float4 a = *reinterpret_cast<const float4*>(p), b = *reinterpret_cast<const float4*>(p + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ inline void load8(const Half* p, float (&v)[8]) {
  const uint4 u = *reinterpret_cast<const uint4*>(p);
  const unsigned word[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(word[i] << 16);
    v[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
  }
}
__device__ inline unsigned pack2(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}
__device__ inline void store8(float* p, const float (&v)[8]) {
  reinterpret_cast<float4*>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
  reinterpret_cast<float4*>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
__device__ inline void store8(Half* p, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(p) = make_uint4(pack2(v[0], v[1]), pack2(v[2], v[3]), pack2(v[4], v[5]), pack2(v[6], v[7]));
}

// Philox4x32 with 7 rounds; see dropout.h for what the counter holds.
__device__ inline uint4 philox7(uint4 counter, uint2 key) {
#pragma unroll
  for (int round = 0; round < 7; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
    const unsigned high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key.x += 0x9E3779B9u;
    key.y += 0xBB67AE85u;
  }
  return counter;
}

// The words that decide group `group` of a row.
__device__ inline uint4 keep_words(const Dropout& dropout, std::uint32_t site, std::uint32_t row, unsigned group) {
  return philox7(make_uint4(dropout.key.micro << 16 | group, row, site, dropout.key.step),
                 make_uint2(static_cast<unsigned>(dropout.key.seed), static_cast<unsigned>(dropout.key.seed >> 32)));
}

// Row kernels: one block works on one row at a time, and a thread owns the eight columns that one Philox block decides:
// four pairs, 32 columns apart. Thread number = Philox group of the row.
inline int row_threads(std::int64_t width) {
  const std::int64_t groups = (width + 127) / 128 * 16;
  return static_cast<int>((groups + 31) / 32 * 32);
}

struct Columns {
  int first, width;
  __device__ explicit Columns(int width_)
      : first(static_cast<int>(threadIdx.x >> 4) * 128 + static_cast<int>(threadIdx.x & 15) * 2), width(width_) {}
  __device__ int at(int pair) const { return first + 32 * pair; }
  __device__ bool has(int pair) const { return at(pair) < width; }
};

template <typename T>
__device__ inline void load_columns(const T* row, const Columns& c, float (&v)[8]) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const float2 pair = c.has(w) ? load2(row + c.at(w)) : make_float2(0.f, 0.f);
    v[2 * w] = pair.x;
    v[2 * w + 1] = pair.y;
  }
}
template <typename T>
__device__ inline void store_columns(T* row, const Columns& c, const float (&v)[8]) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if (c.has(w)) store2(row + c.at(w), make_float2(v[2 * w], v[2 * w + 1]));
  }
}

// v *= keep ? scale : 0.
__device__ inline void drop_columns(const DropoutPlace& place, std::uint32_t row_id, float (&v)[8]) {
  const uint4 words = keep_words(place.dropout, place.site, row_id, threadIdx.x);
  const unsigned word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    v[2 * w] = (word[w] & 0xffffu) >= place.dropout.threshold ? v[2 * w] * place.dropout.scale : 0.f;
    v[2 * w + 1] = (word[w] >> 16) >= place.dropout.threshold ? v[2 * w + 1] * place.dropout.scale : 0.f;
  }
}

template <typename T>
__device__ inline T warp_sum(T v) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// Sums of N numbers over the block, the same in every thread. Two calls in a row take different `shared`.
template <int N>
struct BlockSum {
  float value[N][32];
};
template <int N>
__device__ inline void block_sum(float (&v)[N], BlockSum<N>& shared) {
  const int warp = static_cast<int>(threadIdx.x >> 5), warps = static_cast<int>(blockDim.x >> 5);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    v[i] = warp_sum(v[i]);
    if ((threadIdx.x & 31) == 0) shared.value[i][warp] = v[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    v[i] = 0;
    for (int w = 0; w < warps; ++w) v[i] += shared.value[i][w];
  }
}

// Calls f(pointer of the matrix's type).
template <typename F>
inline void with_type(const ConstMatrix& m, F&& f) {
  if (m.type == Num::kFloat) {
    f(static_cast<const float*>(m.data));
  } else {
    f(static_cast<const Half*>(m.data));
  }
}
template <typename F>
inline void with_type(const Matrix& m, F&& f) {
  if (m.type == Num::kFloat) {
    f(static_cast<float*>(m.data));
  } else {
    f(static_cast<Half*>(m.data));
  }
}

}  // namespace train_gpt_v2::cuda
