#pragma once
// Attention backward of one (segment, head). The dropout mask comes from the counter again; the probabilities are
// computed again from the kept log sums, and D = sum(dO * O) stands for the sum over a row, which holds under dropout.

template <bool kPairs>
struct BackwardScratch {
  using Operand = typename HeadTypes<kPairs>::Operand;
  Operand *q, *q_rows, *d, *d_rows, *rows, *k_rows, *weights, *d_scores, *weight_pairs, *d_score_pairs;
  float *kt, *vt, *scores, *d_weights, *dq, *dk, *dv;
  BackwardScratch(Pieces& p, const HeadShape<kPairs>& s) {
    const std::int64_t matrix = (s.padded + 2) * s.width, block = kQueryBlock * s.padded;
    q = p.take<Operand>(matrix);
    d = p.take<Operand>(matrix);
    rows = p.take<Operand>(matrix);
    kt = p.take<float>(s.units * s.padded);
    vt = p.take<float>(s.units * s.padded);
    scores = p.take<float>(block);
    d_weights = p.take<float>(block);
    dq = p.take<float>(kQueryBlock * s.width);
    dk = p.take<float>(matrix);
    dv = p.take<float>(matrix);
    k_rows = p.take<Operand>(matrix);
    if constexpr (kPairs) {
      q_rows = p.take<Operand>(matrix);
      d_rows = p.take<Operand>(matrix);
      weights = p.take<Operand>(block);
      d_scores = p.take<Operand>(block);
      weight_pairs = p.take<Operand>(block);
      d_score_pairs = p.take<Operand>(block);
    } else {
      q_rows = d_rows = nullptr;
      weights = weight_pairs = scores;
      d_scores = d_score_pairs = d_weights;
    }
  }
};

// One query row: scores -> dropped probabilities (weights), d_weights -> gradient of the scores; d_out, out are rows.
template <typename T, typename Operand>
inline void softmax_backward_row(const Attention& a, std::int64_t segment, std::int64_t head, std::int64_t query,
                                 float log_sum, const T* d_out, const T* out, const float* scores,
                                 const float* d_weights, Operand* weights, Operand* d_scores, std::int64_t padded_end) {
  const std::int64_t end = query + 1;
  Vec dot = zero();
  for_columns(
      0, a.head_dim, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
        dot = fma(load(d_out + j, span), load(out + j, span), dot);
      });
  const Vec delta = splat(sum(dot)), log = splat(log_sum), scale = splat(a.dropout.active() ? a.dropout.scale : 1.f);
  for_kept_keys(
      a, segment, head, query, end, [&](std::int64_t j, auto span, std::uint32_t bits) __attribute__((always_inline)) {
        const Vec p = exp(sub(load(scores + j, span), log));
        const Vec g = mul(keep(bits, load(d_weights + j, span)), scale);
        store(d_scores + j, mul(p, sub(g, delta)), span);
        store(weights + j, mul(keep(bits, p), scale), span);
      });
  for (std::int64_t j = end; j < padded_end; ++j) weights[j] = d_scores[j] = Operand{};
}

// Pairs of the block's rows, for the products whose reduced dimension is the query.
inline void pair_rows(const float*, std::int64_t, std::int64_t, float*) {}
inline void pair_rows(const Bf16* rows, std::int64_t count, std::int64_t width, Bf16* out) {
  for (std::int64_t i = 0; i < count; i += 2) {
    interleave(rows + i * width, i + 1 < count ? rows + (i + 1) * width : nullptr, width, out + i * width);
  }
}

template <bool kPairs, typename T>
inline void attention_backward_head(const AttentionBackward& b, std::int64_t segment, std::int64_t head, void* memory) {
  const Attention& a = b.forward;
  const Segment place = a.segments[segment];
  const HeadShape<kPairs> s(place.length, a.head_dim);
  Pieces pieces{static_cast<char*>(memory)};
  const BackwardScratch<kPairs> w(pieces, s);
  const HeadView<T> view(a, place, head);
  const float scale = 1.f / __builtin_sqrtf(static_cast<float>(s.d));
  const T* out = static_cast<const T*>(a.out.data) + place.begin * a.out.stride + head * s.d;
  const T* d_out = static_cast<const T*>(b.d_out.data) + place.begin * b.d_out.stride + head * s.d;
  const float* log_sum = a.log_sum + head * a.log_sum_stride + place.begin;
  load_head(view.v, view.stride, view.bias_v, 1.f, s.length, s.d, s.width, w.rows);
  transpose_units<kPairs>(as_units(w.rows), s, w.vt);
  load_head(view.k, view.stride, view.bias_k, 1.f, s.length, s.d, s.width, w.rows);
  transpose_units<kPairs>(as_units(w.rows), s, w.kt);
  const float* k_rows = row_operand(w.rows, s.length, s.padded, s.width, w.k_rows);
  load_head(view.q, view.stride, view.bias_q, scale, s.length, s.d, s.width, w.q);
  const float* q_rows = row_operand(w.q, s.length, s.padded, s.width, w.q_rows);
  load_head(d_out, b.d_out.stride, static_cast<const float*>(nullptr), 1.f, s.length, s.d, s.width, w.d);
  const float* d_rows = row_operand(w.d, s.length, s.padded, s.width, w.d_rows);

  const std::int64_t model = a.heads * s.d;
  T* dq = static_cast<T*>(b.d_qkv.data) + place.begin * b.d_qkv.stride + head * s.d;
  // From the last block down: its products cover every key, so they start dK and dV.
  const std::int64_t last = (s.length - 1) / kQueryBlock * kQueryBlock;
  for (std::int64_t first = last; first >= 0; first -= kQueryBlock) {
    const std::int64_t m = s.length - first < kQueryBlock ? s.length - first : kQueryBlock;
    const std::int64_t keys = first + m, n = round_up(keys, 32);
    mini_gemm<kPairs>({m, n, s.units, as_units(w.q) + first * s.units, s.units, 1, w.kt, s.padded, w.scores, n, false});
    mini_gemm<kPairs>(
        {m, n, s.units, as_units(w.d) + first * s.units, s.units, 1, w.vt, s.padded, w.d_weights, n, false});
    for (std::int64_t i = 0; i < m; ++i) {
      softmax_backward_row(a, segment, head, first + i, log_sum[first + i], d_out + (first + i) * b.d_out.stride,
                           out + (first + i) * a.out.stride, w.scores + i * n, w.d_weights + i * n, w.weights + i * n,
                           w.d_scores + i * n, n);
    }
    pair_rows(w.weights, m, n, w.weight_pairs);
    pair_rows(w.d_scores, m, n, w.d_score_pairs);
    const std::int64_t units = (m + s.kPer - 1) / s.kPer, from = first / s.kPer * s.width;
    const bool add_up = first != last;
    mini_gemm<kPairs>(
        {keys, s.width, units, as_units(w.weight_pairs), 1, n, d_rows + from, s.width, w.dv, s.width, add_up});
    mini_gemm<kPairs>(
        {keys, s.width, units, as_units(w.d_score_pairs), 1, n, q_rows + from, s.width, w.dk, s.width, add_up});
    const std::int64_t key_units = kPairs ? n / 2 : keys;
    mini_gemm<kPairs>(
        {m, s.width, key_units, as_units(w.d_scores), n / s.kPer, 1, k_rows, s.width, w.dq, s.width, false});
    for (std::int64_t i = 0; i < m; ++i) {
      for_columns(
          0, s.d, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
            store(dq + (first + i) * b.d_qkv.stride + j, mul(load(w.dq + i * s.width + j, span), splat(scale)), span);
          });
    }
  }
  for (std::int64_t i = 0; i < s.length; ++i) {
    for_columns(
        0, s.d, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
          store(dq + i * b.d_qkv.stride + model + j, load(w.dk + i * s.width + j, span), span);
          store(dq + i * b.d_qkv.stride + 2 * model + j, load(w.dv + i * s.width + j, span), span);
        });
  }
}

// Float products for float storage and where the processor has no bf16 products.
inline bool attention_pairs(const Attention& a) {
  return kPairUnits && a.qkv.type == Num::kBf16;
}

std::size_t attention_scratch(const Attention& a, std::int64_t length) {
  Pieces forward{nullptr}, backward{nullptr};
  if (attention_pairs(a)) {
    const HeadShape<true> s(length, a.head_dim);
    ForwardScratch<true>(forward, s);
    BackwardScratch<true>(backward, s);
  } else {
    const HeadShape<false> s(length, a.head_dim);
    ForwardScratch<false>(forward, s);
    BackwardScratch<false>(backward, s);
  }
  return forward.used > backward.used ? forward.used : backward.used;
}

void attention(const Attention& a, std::int64_t segment, std::int64_t head, void* scratch) {
  if (a.qkv.type == Num::kFloat) return attention_forward_head<false, float>(a, segment, head, scratch);
  attention_forward_head<kPairUnits, Bf16>(a, segment, head, scratch);
}

void attention_backward(const AttentionBackward& b, std::int64_t segment, std::int64_t head, void* scratch) {
  if (b.forward.qkv.type == Num::kFloat) return attention_backward_head<false, float>(b, segment, head, scratch);
  attention_backward_head<kPairUnits, Bf16>(b, segment, head, scratch);
}
