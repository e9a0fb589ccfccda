#pragma once
// Attention forward of one (segment, head); see attention_head.h.

// Sources of a head inside the packed matrices.
template <typename T>
struct HeadView {
  const T *q, *k, *v;
  const float *bias_q, *bias_k, *bias_v;
  std::int64_t stride;
  HeadView(const Attention& a, const Segment& s, std::int64_t head) {
    const std::int64_t model = a.heads * a.head_dim, at = head * a.head_dim;
    q = static_cast<const T*>(a.qkv.data) + s.begin * a.qkv.stride + at;
    k = q + model;
    v = k + model;
    bias_q = a.bias + at;
    bias_k = bias_q + model;
    bias_v = bias_k + model;
    stride = a.qkv.stride;
  }
};

template <bool kPairs>
struct ForwardScratch {
  using Operand = typename HeadTypes<kPairs>::Operand;
  Operand *q, *rows, *v, *weights;
  float *kt, *scores, *out;
  ForwardScratch(Pieces& p, const HeadShape<kPairs>& s) {
    q = p.take<Operand>(s.padded * s.width);
    rows = p.take<Operand>(s.padded * s.width);
    v = p.take<Operand>((s.padded + 2) * s.width);
    kt = p.take<float>(s.units * s.padded);
    scores = p.take<float>(kQueryBlock * s.padded);
    weights = kPairs ? p.take<Operand>(kQueryBlock * s.padded) : reinterpret_cast<Operand*>(scores);
    out = p.take<float>(kQueryBlock * s.width);
  }
};

// Softmax of one query row of scores [0, end) into weights [0, padded_end), with dropout; returns the log of the sum.
template <typename Operand>
inline float softmax_row(const Attention& a, std::int64_t segment, std::int64_t head, std::int64_t query, float* scores,
                         Operand* weights, std::int64_t padded_end) {
  const std::int64_t end = query + 1;
  Vec highest = splat(-3.4e38f);
  std::int64_t j = 0;
  for (; j + kLanes <= end; j += kLanes) highest = max(highest, load(scores + j));
  float top = greatest(highest);
  for (std::int64_t k = j; k < end; ++k) top = top > scores[k] ? top : scores[k];
  const Vec m = splat(top);
  Vec total = zero();
  for (std::int64_t k = 0; k < j; k += kLanes) {
    const Vec e = exp(sub(load(scores + k), m));
    store(scores + k, e);
    total = add(total, e);
  }
  if (const int tail = static_cast<int>(end - j)) {
    const Vec e = keep((1u << tail) - 1u, exp(sub(load(scores + j, tail), m)));
    store(scores + j, e, tail);
    total = add(total, e);
  }
  const float s = sum(total);
  const Vec factor = splat((a.dropout.active() ? a.dropout.scale : 1.f) / s);
  for_kept_keys(
      a, segment, head, query, end, [&](std::int64_t k, auto span, std::uint32_t bits) __attribute__((always_inline)) {
        store(weights + k, mul(keep(bits, load(scores + k, span)), factor), span);
      });
  for (std::int64_t k = end; k < padded_end; ++k) weights[k] = Operand{};
  return top + __builtin_logf(s);
}

template <bool kPairs, typename T>
inline void attention_forward_head(const Attention& a, std::int64_t segment, std::int64_t head, void* memory) {
  const Segment place = a.segments[segment];
  const HeadShape<kPairs> s(place.length, a.head_dim);
  Pieces pieces{static_cast<char*>(memory)};
  const ForwardScratch<kPairs> w(pieces, s);
  const HeadView<T> view(a, place, head);
  load_head(view.q, view.stride, view.bias_q, 1.f / __builtin_sqrtf(static_cast<float>(s.d)), s.length, s.d, s.width,
            w.q);
  load_head(view.k, view.stride, view.bias_k, 1.f, s.length, s.d, s.width, w.rows);
  transpose_units<kPairs>(as_units(w.rows), s, w.kt);
  load_head(view.v, view.stride, view.bias_v, 1.f, s.length, s.d, s.width, w.rows);
  const float* v = row_operand(w.rows, s.length, s.padded, s.width, w.v);
  T* out = static_cast<T*>(a.out.data) + place.begin * a.out.stride + head * s.d;
  float* log_sum = a.log_sum + head * a.log_sum_stride + place.begin;
  for (std::int64_t first = 0; first < s.length; first += kQueryBlock) {
    const std::int64_t m = s.length - first < kQueryBlock ? s.length - first : kQueryBlock;
    const std::int64_t n = round_up(first + m, 32);
    mini_gemm<kPairs>({m, n, s.units, as_units(w.q) + first * s.units, s.units, 1, w.kt, s.padded, w.scores, n, false});
    for (std::int64_t i = 0; i < m; ++i) {
      log_sum[first + i] = softmax_row(a, segment, head, first + i, w.scores + i * n, w.weights + i * n, n);
    }
    const std::int64_t units = kPairs ? n / 2 : first + m;
    mini_gemm<kPairs>({m, s.width, units, as_units(w.weights), n / s.kPer, 1, v, s.width, w.out, s.width, false});
    for (std::int64_t i = 0; i < m; ++i) {
      for_columns(
          0, s.d, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
            store(out + (first + i) * a.out.stride + j, load(w.out + i * s.width + j, span), span);
          });
    }
  }
}
