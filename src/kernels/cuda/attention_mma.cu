// Causal attention of packed segments on tensor cores, bf16, head size 64: the online softmax of FlashAttention
// (Dao et al. 2022) forward; backward in two kernels, one that owns queries and one that owns keys, so that no sum
// needs an atomic. m16n8k16 products run on every architecture from sm_80 on.
//
// Biases. A bias of the keys shifts all scores of a query alike, so softmax and its gradient ignore it; a bias of the
// values adds bias * (sum of kept probabilities) to the output and dO . bias to dP. Keys and values are therefore read
// as they lie, and only queries get their bias when they are loaded.
//
// Fragments (PTX m16n8k16): lane l has group g = l / 4 and t = l % 4; an accumulator holds (row g, columns 2t, 2t + 1)
// and (row g + 8, the same); two accumulators of neighbouring 8-column tiles are the A operand of the next product.

#include "device.cuh"

namespace train_gpt_v2::cuda {
namespace {

constexpr int kDim = 64, kTile = 64, kThreads = 128;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kScale = 0.125f, kScaleLog2 = kScale * kLog2E;  // 1 / sqrt(64)

struct Tile {  // 64 rows of 64 numbers; 16-byte chunk c of row r lies at chunk c ^ (r % 8)
  uint4 chunk[kTile * 8];
};

__device__ float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
__device__ const uint4* chunk_at(const Tile& tile, int row, int chunk) {
  return tile.chunk + row * 8 + (chunk ^ (row & 7));
}
__device__ uint4* chunk_at(Tile& tile, int row, int chunk) {
  return tile.chunk + row * 8 + (chunk ^ (row & 7));
}

// Copies 16 bytes, or writes zeros.
__device__ void copy_async(void* to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}
__device__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::);
}
template <int kLeft>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft));
}

// Rows [first, first + 64) of a matrix whose row 0 is the segment's; zeros from `length` on.
__device__ void load_tile(Tile& tile, const Half* rows, std::int64_t stride, int first, int length) {
#pragma unroll
  for (int i = 0; i < kTile * 8 / kThreads; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kThreads, row = at / 8, chunk = at % 8;
    const bool valid = first + row < length;
    copy_async(chunk_at(tile, row, chunk), rows + (valid ? first + row : 0) * stride + chunk * 8, valid);
  }
}

__device__ void ldmatrix(const uint4* address, unsigned (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(address)));
}
__device__ void ldmatrix_transposed(const uint4* address, unsigned (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(address)));
}
__device__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

using Fragments = unsigned[4][4];  // 16 rows x 64 columns as A operand
using Accumulators = float[8][4];  // 16 rows x 64 columns

// c += A * B', B's rows being the tile's rows.
__device__ void multiply_by_rows(Accumulators& c, const Fragments& a, const Tile& b) {
  const int lane = static_cast<int>(threadIdx.x & 31), matrix = lane / 8;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      unsigned r[4];
      ldmatrix(chunk_at(b, 16 * n + matrix / 2 * 8 + lane % 8, 2 * k + (matrix & 1)), r);
      multiply_add(c[2 * n], a[k], r[0], r[1]);
      multiply_add(c[2 * n + 1], a[k], r[2], r[3]);
    }
  }
}

// c += A * B, A being 16 x 64 and the tile's rows B's rows.
__device__ void multiply_by_columns(Accumulators& c, const Fragments& a, const Tile& b) {
  const int lane = static_cast<int>(threadIdx.x & 31), matrix = lane / 8;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      unsigned r[4];
      ldmatrix_transposed(chunk_at(b, 16 * k + (matrix & 1) * 8 + lane % 8, 2 * n + matrix / 2), r);
      multiply_add(c[2 * n], a[k], r[0], r[1]);
      multiply_add(c[2 * n + 1], a[k], r[2], r[3]);
    }
  }
}

// Accumulators rounded to bf16 as the A operand of the next product.
__device__ void to_fragments(const Accumulators& c, Fragments& a) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    a[k][0] = pack2(c[2 * k][0], c[2 * k][1]);
    a[k][1] = pack2(c[2 * k][2], c[2 * k][3]);
    a[k][2] = pack2(c[2 * k + 1][0], c[2 * k + 1][1]);
    a[k][3] = pack2(c[2 * k + 1][2], c[2 * k + 1][3]);
  }
}

// Where this thread's two rows lie: in its warp's 16 rows of the tile.
struct Place {
  int warp, g, t, row0, row1;  // rows within the segment
  __device__ explicit Place(int first)
      : warp(static_cast<int>(threadIdx.x / 32)),
        g(static_cast<int>(threadIdx.x % 32 / 4)),
        t(static_cast<int>(threadIdx.x % 4)),
        row0(first + warp * 16 + g),
        row1(row0 + 8) {}
};

// The A operand of this warp's 16 rows of a tile.
__device__ void read_fragments(const Tile& tile, const Place& p, Fragments& a) {
  const int lane = static_cast<int>(threadIdx.x & 31), matrix = lane / 8;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    ldmatrix(chunk_at(tile, p.warp * 16 + (matrix & 1) * 8 + lane % 8, 2 * k + matrix / 2), a[k]);
  }
}

// Writes the warp's rows times factor0 and factor1.
__device__ void write_rows(Half* rows, std::int64_t stride, const Place& p, int length, const Accumulators& c,
                           float factor0, float factor1) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int column = 8 * n + 2 * p.t;
    if (p.row0 < length) store2(rows + p.row0 * stride + column, make_float2(c[n][0] * factor0, c[n][1] * factor0));
    if (p.row1 < length) store2(rows + p.row1 * stride + column, make_float2(c[n][2] * factor1, c[n][3] * factor1));
  }
}

__device__ float quad_sum(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
__device__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// What the kernels need of one head of one segment.
struct HeadView {
  const Half *q, *k, *v;  // row 0 of the segment
  const float *q_bias, *v_bias;
  std::int64_t stride;
  int length, head;
  std::int64_t begin;

  __device__ HeadView(const Attention& a, const AttentionTile& tile, int head_)
      : stride(a.qkv.stride), length(tile.length), head(head_), begin(tile.begin) {
    const std::int64_t width = a.heads * kDim;
    q = static_cast<const Half*>(a.qkv.data) + begin * stride + head * kDim;
    k = q + width;
    v = k + width;
    q_bias = a.bias ? a.bias + head * kDim : nullptr;
    v_bias = a.bias ? a.bias + 2 * width + head * kDim : nullptr;
  }
};

// 64 queries on their way to a tile, where they get their bias: every thread has one chunk of four rows.
struct QueryStage {
  static constexpr int kRows = kTile * 8 / kThreads;
  uint4 chunk[kRows];

  __device__ void read(const HeadView& h, int first) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = first + static_cast<int>(threadIdx.x / 8) + i * (kTile / kRows);
      chunk[i] = row < h.length ? *reinterpret_cast<const uint4*>(h.q + row * h.stride + threadIdx.x % 8 * 8)
                                : make_uint4(0, 0, 0, 0);
    }
  }
  __device__ void write(Tile& tile, const float* bias) const {
    float b[8] = {};
    if (bias) load8(bias + threadIdx.x % 8 * 8, b);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float v[8];
      load8(reinterpret_cast<const Half*>(&chunk[i]), v);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] += b[j];
      store8(reinterpret_cast<Half*>(chunk_at(tile, static_cast<int>(threadIdx.x / 8) + i * (kTile / kRows),
                                              static_cast<int>(threadIdx.x % 8))),
             v);
    }
  }
};

// The keep bits of one query for 64 keys, shifted so that bit 4 (n % 4) + 16 e of word n / 4 is column 8 n + 2 t + e.
__device__ uint2 keep_bits(const AttentionDevice& d, const HeadView& h, int row, int key_block, int t) {
  const std::int64_t at = (h.head * d.rows + h.begin + (row < h.length ? row : 0)) * d.mask_blocks;
  const uint2 words = reinterpret_cast<const uint2*>(d.mask + at)[key_block];
  return make_uint2(words.x >> t, words.y >> t);
}
__device__ bool kept(const uint2& bits, int n, int e) {
  return (n < 4 ? bits.x : bits.y) >> (4 * (n % 4) + 16 * e) & 1u;
}

template <bool kDropout>
__global__ void __launch_bounds__(kThreads, 3) forward_kernel(Attention a, AttentionDevice d) {
  __shared__ Tile keys[2], values[2];
  const auto heads = static_cast<unsigned>(a.heads);
  const AttentionTile tile = d.by_query[blockIdx.x / heads];
  const HeadView h(a, tile, static_cast<int>(blockIdx.x % heads));
  const Place p(tile.block * kTile);
  QueryStage staged;
  staged.read(h, tile.block * kTile);
  load_tile(keys[0], h.k, h.stride, 0, h.length);
  load_tile(values[0], h.v, h.stride, 0, h.length);
  commit_copies();
  staged.write(keys[1], h.q_bias);
  __syncthreads();
  Fragments q;
  read_fragments(keys[1], p, q);
  __syncthreads();

  Accumulators o = {};
  float highest[2] = {-INFINITY, -INFINITY}, sum[2] = {}, kept_sum[2] = {};
  for (int block = 0; block <= tile.block; ++block) {
    if (block < tile.block) {
      load_tile(keys[(block + 1) & 1], h.k, h.stride, (block + 1) * kTile, h.length);
      load_tile(values[(block + 1) & 1], h.v, h.stride, (block + 1) * kTile, h.length);
    }
    commit_copies();
    uint2 bits[2];
    if (kDropout) {
      bits[0] = keep_bits(d, h, p.row0, block, p.t);
      bits[1] = keep_bits(d, h, p.row1, block, p.t);
    }
    wait_copies<1>();
    __syncthreads();
    Accumulators s = {};
    multiply_by_rows(s, q, keys[block & 1]);
    if (block == tile.block) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (block * kTile + 8 * n + 2 * p.t + (e & 1) > (e < 2 ? p.row0 : p.row1)) s[n][e] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float m = highest[i];
#pragma unroll
      for (int n = 0; n < 8; ++n) m = fmaxf(m, fmaxf(s[n][2 * i], s[n][2 * i + 1]) * kScaleLog2);
      m = quad_max(m);
      const float shrink = power_of_2(highest[i] - m);
      highest[i] = m;
      sum[i] *= shrink;
      kept_sum[i] *= shrink;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        o[n][2 * i] *= shrink;
        o[n][2 * i + 1] *= shrink;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& value = s[n][2 * i + e];
          value = power_of_2(fmaf(value, kScaleLog2, -m));
          sum[i] += value;
          if (kDropout) {
            if (!kept(bits[i], n, e)) value = 0.f;
            kept_sum[i] += value;
          }
        }
      }
    }
    Fragments probabilities;
    to_fragments(s, probabilities);
    multiply_by_columns(o, probabilities, values[block & 1]);
    __syncthreads();
  }

  float factor[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] = quad_sum(sum[i]);
    kept_sum[i] = kDropout ? quad_sum(kept_sum[i]) : sum[i];
    factor[i] = (kDropout ? a.dropout.scale : 1.f) / sum[i];
    const int row = i ? p.row1 : p.row0;
    if (p.t == 0 && row < h.length) {
      a.log_sum[h.head * a.log_sum_stride + h.begin + row] = (highest[i] + log2f(sum[i])) / kLog2E;
    }
  }
  if (h.v_bias) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o[n][e] = fmaf(kept_sum[e / 2], h.v_bias[8 * n + 2 * p.t + (e & 1)], o[n][e]);
    }
  }
  write_rows(static_cast<Half*>(a.out.data) + h.begin * a.out.stride + h.head * kDim, a.out.stride, p, h.length, o,
             factor[0], factor[1]);
}

// {log2 of the sum, dO . O, dO . value bias} of every query and head; eight lanes each.
__global__ void stats_kernel(Attention a, AttentionDevice d, const Half* d_out, std::int64_t d_stride) {
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 8;
  const bool inside = at < d.rows * a.heads;
  const std::int64_t row = inside ? at / a.heads : 0, head = at % a.heads;
  const std::int64_t column = head * kDim + (threadIdx.x & 7) * 8;
  float o[8], g[8], product = 0, with_bias = 0;
  load8(static_cast<const Half*>(a.out.data) + row * a.out.stride + column, o);
  load8(d_out + row * d_stride + column, g);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    product = fmaf(o[i], g[i], product);
    if (a.bias) with_bias = fmaf(a.bias[2 * a.heads * kDim + column + i], g[i], with_bias);
  }
#pragma unroll
  for (int offset = 4; offset; offset >>= 1) {
    product += __shfl_xor_sync(0xffffffffu, product, offset);
    with_bias += __shfl_xor_sync(0xffffffffu, with_bias, offset);
  }
  if (inside && (threadIdx.x & 7) == 0) {
    d.stats[head * d.rows + row] =
        make_float4(a.log_sum[head * a.log_sum_stride + row] * kLog2E, product, with_bias, 0.f);
  }
}

// dQ of 64 queries: over the key tiles up to the diagonal.
template <bool kDropout>
__global__ void __launch_bounds__(kThreads, 3)
    backward_query_kernel(Attention a, AttentionDevice d, const Half* d_out, std::int64_t d_stride, Half* d_qkv,
                          std::int64_t d_qkv_stride) {
  __shared__ Tile keys[2], values[2];
  const auto heads = static_cast<unsigned>(a.heads);
  const AttentionTile tile = d.by_query[blockIdx.x / heads];
  const HeadView h(a, tile, static_cast<int>(blockIdx.x % heads));
  const Place p(tile.block * kTile);
  QueryStage staged;
  staged.read(h, tile.block * kTile);
  load_tile(values[1], d_out + h.begin * d_stride + h.head * kDim, d_stride, tile.block * kTile, h.length);
  commit_copies();
  load_tile(keys[0], h.k, h.stride, 0, h.length);
  load_tile(values[0], h.v, h.stride, 0, h.length);
  commit_copies();
  float4 stats[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = i ? p.row1 : p.row0;
    stats[i] = row < h.length ? d.stats[h.head * d.rows + h.begin + row] : make_float4(INFINITY, 0.f, 0.f, 0.f);
  }
  staged.write(keys[1], h.q_bias);
  wait_copies<1>();
  __syncthreads();
  Fragments q, g;
  read_fragments(keys[1], p, q);
  read_fragments(values[1], p, g);
  __syncthreads();

  Accumulators dq = {};
  for (int block = 0; block <= tile.block; ++block) {
    if (block < tile.block) {
      load_tile(keys[(block + 1) & 1], h.k, h.stride, (block + 1) * kTile, h.length);
      load_tile(values[(block + 1) & 1], h.v, h.stride, (block + 1) * kTile, h.length);
    }
    commit_copies();
    uint2 bits[2];
    if (kDropout) {
      bits[0] = keep_bits(d, h, p.row0, block, p.t);
      bits[1] = keep_bits(d, h, p.row1, block, p.t);
    }
    wait_copies<1>();
    __syncthreads();
    Accumulators s = {}, dp = {};
    multiply_by_rows(s, q, keys[block & 1]);
    multiply_by_rows(dp, g, values[block & 1]);
    const bool diagonal = block == tile.block;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float gradient = dp[n][2 * i + e] + stats[i].z;
          if (kDropout) gradient = kept(bits[i], n, e) ? gradient * a.dropout.scale : 0.f;
          const float probability = power_of_2(fmaf(s[n][2 * i + e], kScaleLog2, -stats[i].x));
          const bool later = diagonal && block * kTile + 8 * n + 2 * p.t + e > (i ? p.row1 : p.row0);
          s[n][2 * i + e] = later ? 0.f : probability * (gradient - stats[i].y);
        }
      }
    }
    Fragments ds;
    to_fragments(s, ds);
    multiply_by_columns(dq, ds, keys[block & 1]);
    __syncthreads();
  }
  write_rows(d_qkv + h.begin * d_qkv_stride + h.head * kDim, d_qkv_stride, p, h.length, dq, kScale, kScale);
}

// dK and dV of 64 keys: over the query tiles from the diagonal on, with the scores transposed (rows are keys).
template <bool kDropout>
__global__ void __launch_bounds__(kThreads, 2)
    backward_key_kernel(Attention a, AttentionDevice d, const Half* d_out, std::int64_t d_stride, Half* d_qkv,
                        std::int64_t d_qkv_stride) {
  __shared__ Tile queries[2], gradients[2];
  __shared__ float4 stats[2][kTile];
  __shared__ uint2 masks[2][kTile];
  const auto heads = static_cast<unsigned>(a.heads);
  const AttentionTile tile = d.by_key[blockIdx.x / heads];
  const HeadView h(a, tile, static_cast<int>(blockIdx.x % heads));
  const Place p(tile.block * kTile);
  const Half* g_rows = d_out + h.begin * d_stride + h.head * kDim;
  const float4* stats_rows = d.stats + h.head * d.rows + h.begin;
  const uint4* mask_rows = d.mask + (h.head * d.rows + h.begin) * d.mask_blocks;
  const int thread = static_cast<int>(threadIdx.x), last = (h.length - 1) / kTile;

  QueryStage staged;
  const auto fetch = [&](int block) {  // what the next round needs
    const int stage = block & 1, first = block * kTile;
    staged.read(h, first);
    load_tile(gradients[stage], g_rows, d_stride, first, h.length);
    if (thread < kTile) {
      const int row = first + thread;
      stats[stage][thread] = row < h.length ? stats_rows[row] : make_float4(INFINITY, 0.f, 0.f, 0.f);
      if (kDropout && row < h.length) {
        masks[stage][thread] = reinterpret_cast<const uint2*>(mask_rows + row * d.mask_blocks)[tile.block];
      }
    }
  };
  Tile &spare0 = queries[(tile.block + 1) & 1], &spare1 = gradients[(tile.block + 1) & 1];
  load_tile(spare0, h.k, h.stride, tile.block * kTile, h.length);
  load_tile(spare1, h.v, h.stride, tile.block * kTile, h.length);
  commit_copies();
  fetch(tile.block);
  commit_copies();
  staged.write(queries[tile.block & 1], h.q_bias);
  wait_copies<1>();
  __syncthreads();
  Fragments k, v;
  read_fragments(spare0, p, k);
  read_fragments(spare1, p, v);

  // This thread's keys among the 64: word and bit of row0; row1 = row0 + 8 stands four bits higher.
  const int key = p.warp * 16 + p.g, bit = key % 32 / 2 + 16 * (key & 1);
  Accumulators dk = {}, dv = {};
  for (int block = tile.block; block <= last; ++block) {
    const int stage = block & 1;
    wait_copies<0>();
    __syncthreads();
    if (block < last) fetch(block + 1);
    commit_copies();
    Accumulators s = {}, dp = {};
    multiply_by_rows(s, k, queries[stage]);
    multiply_by_rows(dp, v, gradients[stage]);
    const bool diagonal = block == tile.block;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int query = 8 * n + 2 * p.t + e;
        const float4 of_query = stats[stage][query];
        unsigned bits = ~0u;
        if (kDropout) bits = (p.warp < 2 ? masks[stage][query].x : masks[stage][query].y) >> bit;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = s[n][2 * i + e];
          float& gradient = dp[n][2 * i + e];
          float probability = power_of_2(fmaf(score, kScaleLog2, -of_query.x));
          if (diagonal && (i ? p.row1 : p.row0) > block * kTile + query) probability = 0.f;
          float factor = 1.f;
          if (kDropout) factor = bits >> (4 * i) & 1u ? a.dropout.scale : 0.f;
          score = probability * factor;
          gradient = probability * (factor * (gradient + of_query.z) - of_query.y);
        }
      }
    }
    Fragments operand;
    to_fragments(s, operand);
    multiply_by_columns(dv, operand, gradients[stage]);
    to_fragments(dp, operand);
    multiply_by_columns(dk, operand, queries[stage]);
    if (block < last) staged.write(queries[(block + 1) & 1], h.q_bias);
  }
  const std::int64_t width = a.heads * kDim;
  Half* out = d_qkv + h.begin * d_qkv_stride + h.head * kDim;
  write_rows(out + width, d_qkv_stride, p, h.length, dk, kScale, kScale);
  write_rows(out + 2 * width, d_qkv_stride, p, h.length, dv, 1.f, 1.f);
}

}  // namespace

bool attention_mma_takes(const Attention& a) {
  return a.head_dim == kDim && a.qkv.type == Num::kBf16 && a.out.type == Num::kBf16;
}

void attention_mma(const Attention& a, const AttentionDevice& d, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(d.tiles * a.heads);
  if (a.dropout.active()) {
    forward_kernel<true><<<blocks, kThreads, 0, stream>>>(a, d);
  } else {
    forward_kernel<false><<<blocks, kThreads, 0, stream>>>(a, d);
  }
}

void attention_mma_backward(const AttentionBackward& b, const AttentionDevice& d, cudaStream_t stream) {
  const Attention& a = b.forward;
  const auto* d_out = static_cast<const Half*>(b.d_out.data);
  auto* d_qkv = static_cast<Half*>(b.d_qkv.data);
  const auto blocks = static_cast<unsigned>(d.tiles * a.heads);
  const auto row_blocks = static_cast<unsigned>((d.rows * a.heads * 8 + kThreads - 1) / kThreads);
  stats_kernel<<<row_blocks, kThreads, 0, stream>>>(a, d, d_out, b.d_out.stride);
  const auto run = [&](auto query_kernel, auto key_kernel) {
    query_kernel<<<blocks, kThreads, 0, stream>>>(a, d, d_out, b.d_out.stride, d_qkv, b.d_qkv.stride);
    key_kernel<<<blocks, kThreads, 0, stream>>>(a, d, d_out, b.d_out.stride, d_qkv, b.d_qkv.stride);
  };
  if (a.dropout.active()) {
    run(backward_query_kernel<true>, backward_key_kernel<true>);
  } else {
    run(backward_query_kernel<false>, backward_key_kernel<false>);
  }
}

}  // namespace train_gpt_v2::cuda
