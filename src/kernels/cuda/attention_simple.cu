// Keep bits of the attention, and attention of any head size in plain arithmetic: a warp per query or key, one column
// at a time.

#include "device.cuh"

namespace train_gpt_v2::cuda {
namespace {

constexpr int kTile = 64, kThreads = 128, kWarps = kThreads / 32;
constexpr int kDims = static_cast<int>(kMaxHeadDim) / 32;  // of one lane

// Half a warp decides 128 keys of one query.
__global__ void mask_kernel(Attention a, AttentionDevice d) {
  const auto heads = static_cast<unsigned>(a.heads);
  const AttentionTile tile = d.by_query[blockIdx.x / heads];
  const unsigned head = blockIdx.x % heads;
  const std::uint32_t site = dropout_site_attention_probability(a.layer, head);
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
  for (int pair = warp; pair < kTile / 2; pair += kWarps) {
    const int position = tile.block * kTile + 2 * pair + lane / 16;
    if (tile.block * kTile + 2 * pair >= tile.length) return;
    const std::uint32_t row =
        dropout_row(static_cast<std::uint32_t>(tile.sample), static_cast<std::uint32_t>(position));
    uint4* out = d.mask + (static_cast<std::int64_t>(head) * d.rows + tile.begin + position) * d.mask_blocks;
    const int blocks = (tile.block * kTile + 2 * pair + 1) / 128 + 1;
    for (int block = 0; block < blocks; ++block) {
      const uint4 words = keep_words(a.dropout, site, row, static_cast<unsigned>(block * 16 + lane % 16));
      const unsigned word[4] = {words.x, words.y, words.z, words.w};
      unsigned bits[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const unsigned even = __ballot_sync(0xffffffffu, (word[w] & 0xffffu) >= a.dropout.threshold);
        const unsigned odd = __ballot_sync(0xffffffffu, (word[w] >> 16) >= a.dropout.threshold);
        bits[w] = lane < 16 ? (even & 0xffffu) | odd << 16 : even >> 16 | (odd & 0xffff0000u);
      }
      if (lane % 16 == 0 && position < tile.length) out[block] = make_uint4(bits[0], bits[1], bits[2], bits[3]);
    }
  }
}

// Rows of one head as a lane sees them: dimensions lane, lane + 32, ...
template <typename T>
struct Head {
  const T* qkv;
  const float* bias;
  std::int64_t stride, width;
  int dim, lane;

  __device__ Head(const Attention& a, const T* qkv_, std::int64_t begin, std::int64_t head)
      : qkv(qkv_ + begin * a.qkv.stride + head * a.head_dim),
        bias(a.bias ? a.bias + head * a.head_dim : nullptr),
        stride(a.qkv.stride),
        width(a.heads * a.head_dim),
        dim(static_cast<int>(a.head_dim)),
        lane(static_cast<int>(threadIdx.x & 31)) {}
  // part 0: query, 1: key, 2: value
  __device__ void read(int part, std::int64_t position, float (&v)[kDims]) const {
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      const int at = lane + 32 * i;
      if (at < dim) v[i] = load(qkv + position * stride + part * width + at) + (bias ? bias[part * width + at] : 0.f);
    }
  }
  template <typename P>
  __device__ void read_row(const P* row, float (&v)[kDims]) const {
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      if (lane + 32 * i < dim) v[i] = load(row + lane + 32 * i);
    }
  }
  template <typename P>
  __device__ void write_row(P* row, const float (&v)[kDims]) const {
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      if (lane + 32 * i < dim) store(row + lane + 32 * i, v[i]);
    }
  }
};

__device__ float dot(const float (&a)[kDims], const float (&b)[kDims]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kDims; ++i) sum = fmaf(a[i], b[i], sum);
  return warp_sum(sum);
}
__device__ void add(float (&to)[kDims], float factor, const float (&v)[kDims]) {
#pragma unroll
  for (int i = 0; i < kDims; ++i) to[i] = fmaf(factor, v[i], to[i]);
}

// 0 or the scale for one query and key.
__device__ float keep(const Attention& a, const AttentionDevice& d, std::int64_t head, std::int64_t row, int key) {
  if (a.dropout.threshold == 0) return 1.f;
  const auto* words = reinterpret_cast<const unsigned*>(d.mask + (head * d.rows + row) * d.mask_blocks);
  return words[key / 32] >> (key % 32 / 2 + 16 * (key & 1)) & 1u ? a.dropout.scale : 0.f;
}

template <typename T, typename Out>
__global__ void forward_kernel(Attention a, AttentionDevice d, const T* qkv, Out* out) {
  const AttentionTile tile = d.by_query[blockIdx.x / a.heads];
  const std::int64_t head = blockIdx.x % a.heads;
  const Head<T> h(a, qkv, tile.begin, head);
  const float scale = rsqrtf(static_cast<float>(a.head_dim));
  for (int i = static_cast<int>(threadIdx.x / 32); i < kTile; i += kWarps) {
    const int position = tile.block * kTile + i;
    if (position >= tile.length) return;
    float q[kDims] = {}, k[kDims] = {}, v[kDims] = {}, o[kDims] = {};
    h.read(0, position, q);
    float highest = -INFINITY, sum = 0;
    for (int j = 0; j <= position; ++j) {
      h.read(1, j, k);
      h.read(2, j, v);
      const float score = dot(q, k) * scale, m = fmaxf(highest, score);
      const float shrink = __expf(highest - m), p = __expf(score - m);
      sum = fmaf(sum, shrink, p);
#pragma unroll
      for (float& value : o) value *= shrink;
      add(o, p * keep(a, d, head, tile.begin + position, j), v);
      highest = m;
    }
#pragma unroll
    for (float& value : o) value /= sum;
    const std::int64_t row = tile.begin + position;
    h.write_row(out + row * a.out.stride + head * a.head_dim, o);
    if (h.lane == 0) a.log_sum[head * a.log_sum_stride + row] = highest + logf(sum);
  }
}

// D = dO . O of every query, for both kernels below.
template <typename Out, typename Grad>
__global__ void row_dot_kernel(Attention a, AttentionDevice d, const Out* out, const Grad* d_out,
                               std::int64_t d_stride) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (at >= d.rows * a.heads) return;
  const std::int64_t row = at / a.heads, head = at % a.heads;
  float sum = 0;
  for (std::int64_t j = threadIdx.x & 31; j < a.head_dim; j += 32) {
    const std::int64_t column = head * a.head_dim + j;
    sum = fmaf(load(out + row * a.out.stride + column), load(d_out + row * d_stride + column), sum);
  }
  sum = warp_sum(sum);
  if ((threadIdx.x & 31) == 0) d.stats[head * d.rows + row].y = sum;
}

template <typename T, typename Grad, typename DQkv>
__global__ void backward_query_kernel(Attention a, AttentionDevice d, const T* qkv, const Grad* d_out,
                                      std::int64_t d_stride, DQkv* d_qkv, std::int64_t d_qkv_stride) {
  const AttentionTile tile = d.by_query[blockIdx.x / a.heads];
  const std::int64_t head = blockIdx.x % a.heads;
  const Head<T> h(a, qkv, tile.begin, head);
  const float scale = rsqrtf(static_cast<float>(a.head_dim));
  for (int i = static_cast<int>(threadIdx.x / 32); i < kTile; i += kWarps) {
    const int position = tile.block * kTile + i;
    if (position >= tile.length) return;
    const std::int64_t row = tile.begin + position;
    float q[kDims] = {}, k[kDims] = {}, v[kDims] = {}, g[kDims] = {}, dq[kDims] = {};
    h.read(0, position, q);
    h.read_row(d_out + row * d_stride + head * a.head_dim, g);
    const float log_sum = a.log_sum[head * a.log_sum_stride + row], row_dot = d.stats[head * d.rows + row].y;
    for (int j = 0; j <= position; ++j) {
      h.read(1, j, k);
      h.read(2, j, v);
      const float p = __expf(dot(q, k) * scale - log_sum);
      add(dq, scale * p * (keep(a, d, head, row, j) * dot(g, v) - row_dot), k);
    }
    h.write_row(d_qkv + row * d_qkv_stride + head * a.head_dim, dq);
  }
}

template <typename T, typename Grad, typename DQkv>
__global__ void backward_key_kernel(Attention a, AttentionDevice d, const T* qkv, const Grad* d_out,
                                    std::int64_t d_stride, DQkv* d_qkv, std::int64_t d_qkv_stride) {
  const AttentionTile tile = d.by_key[blockIdx.x / a.heads];
  const std::int64_t head = blockIdx.x % a.heads;
  const Head<T> h(a, qkv, tile.begin, head);
  const float scale = rsqrtf(static_cast<float>(a.head_dim));
  for (int j = static_cast<int>(threadIdx.x / 32); j < kTile; j += kWarps) {
    const int position = tile.block * kTile + j;
    if (position >= tile.length) return;
    float q[kDims] = {}, k[kDims] = {}, v[kDims] = {}, g[kDims] = {}, dk[kDims] = {}, dv[kDims] = {};
    h.read(1, position, k);
    h.read(2, position, v);
    for (int i = position; i < tile.length; ++i) {
      const std::int64_t row = tile.begin + i;
      h.read(0, i, q);
      h.read_row(d_out + row * d_stride + head * a.head_dim, g);
      const float p = __expf(dot(q, k) * scale - a.log_sum[head * a.log_sum_stride + row]);
      const float kept = keep(a, d, head, row, position);
      add(dv, p * kept, g);
      add(dk, scale * p * (kept * dot(g, v) - d.stats[head * d.rows + row].y), q);
    }
    DQkv* out = d_qkv + (tile.begin + position) * d_qkv_stride + head * a.head_dim;
    h.write_row(out + h.width, dk);
    h.write_row(out + 2 * h.width, dv);
  }
}

}  // namespace

void attention_mask(const Attention& a, const AttentionDevice& d, cudaStream_t stream) {
  mask_kernel<<<static_cast<unsigned>(d.tiles * a.heads), kThreads, 0, stream>>>(a, d);
}

void attention_simple(const Attention& a, const AttentionDevice& d, cudaStream_t stream) {
  with_type(a.qkv, [&](auto* qkv) {
    with_type(a.out, [&](auto* out) {
      forward_kernel<<<static_cast<unsigned>(d.tiles * a.heads), kThreads, 0, stream>>>(a, d, qkv, out);
    });
  });
}

void attention_simple_backward(const AttentionBackward& b, const AttentionDevice& d, cudaStream_t stream) {
  const Attention& a = b.forward;
  const auto tiles = static_cast<unsigned>(d.tiles * a.heads);
  with_type(b.d_out, [&](auto* d_out) {
    with_type(ConstMatrix(a.out), [&](auto* out) {
      const auto blocks = static_cast<unsigned>((d.rows * a.heads + kWarps - 1) / kWarps);
      row_dot_kernel<<<blocks, kThreads, 0, stream>>>(a, d, out, d_out, b.d_out.stride);
    });
    with_type(a.qkv, [&](auto* qkv) {
      with_type(b.d_qkv, [&](auto* d_qkv) {
        backward_query_kernel<<<tiles, kThreads, 0, stream>>>(a, d, qkv, d_out, b.d_out.stride, d_qkv, b.d_qkv.stride);
        backward_key_kernel<<<tiles, kThreads, 0, stream>>>(a, d, qkv, d_out, b.d_out.stride, d_qkv, b.d_qkv.stride);
      });
    });
  });
}

}  // namespace train_gpt_v2::cuda
