#pragma once
// exp, the tanh GELU and one row's LayerNorm on vectors.

// 2^n * polynomial(r), |r| <= ln2 / 2 (Cephes expf): about 1 ulp; below -104 it is 0 or the least subnormal, NaN stays.
inline Vec exp(Vec x) {
  x = min(splat(88.72f), max(splat(-104.f), x));
  const Vec n = round_even(mul(x, splat(1.44269504088896f)));
  Vec r = fnma(n, splat(0.693359375f), x);
  r = fnma(n, splat(-2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, splat(1.f)));
  return scale_by_power_of_two(p, n);
}

// gelu_new(u) = u * s with s = sigmoid(2z), z = sqrt(2/pi) (u + 0.044715 u^3): this form keeps the left tail exact.
struct GeluParts {
  Vec s, e, dz;  // sigmoid(2z), exp(-2z), d(2z)/du
};
inline GeluParts gelu_parts(Vec u) {
  const Vec c = splat(2 * 0.7978845608028654f);
  const Vec u2 = mul(u, u);
  const Vec two_z = mul(mul(c, u), fma(splat(0.044715f), u2, splat(1.f)));
  const Vec e = exp(sub(zero(), two_z));
  return {reciprocal(add(splat(1.f), e)), e, mul(c, fma(splat(3 * 0.044715f), u2, splat(1.f)))};
}
inline Vec gelu(Vec u) {
  return mul(u, gelu_parts(u).s);
}
// s + u * 2z' * s * (1 - s), and 1 - s = e * s without cancellation. Where e overflowed, s is 0 and the product 0.
inline Vec gelu_derivative(Vec u) {
  const GeluParts p = gelu_parts(u);
  return fma(mul(u, p.dz), mul(p.s, mul(p.e, p.s)), p.s);
}

struct Moments {
  float mean, rstd;
};
inline Moments row_moments(const float* x, std::int64_t width) {
  Vec total = zero();
  for_columns(
      0,
      width, [&](std::int64_t j, auto span) __attribute__((always_inline)) { total = add(total, load(x + j, span)); });
  const float mean = sum(total) / static_cast<float>(width);
  Vec squares = zero();
  const Vec m = splat(mean);
  std::int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) {
    const Vec d = sub(load(x + j), m);
    squares = fma(d, d, squares);
  }
  float rest = 0;
  for (; j < width; ++j) rest += (x[j] - mean) * (x[j] - mean);
  const float variance = (sum(squares) + rest) / static_cast<float>(width);
  return {mean, 1.f / __builtin_sqrtf(variance + 1e-5f)};
}

template <typename T>
inline void normalise_row(const float* x, std::int64_t width, Moments s, const float* gamma, const float* beta,
                          T* out) {
  const Vec mean = splat(s.mean), rstd = splat(s.rstd);
  for_columns(
      0, width, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
        store(out + j, fma(mul(sub(load(x + j, span), mean), rstd), load(gamma + j, span), load(beta + j, span)), span);
      });
}

// The two sums that LayerNorm's backward needs, divided by the width; adds to the row sums of gamma and beta.
struct LnMeans {
  float d, dx;  // mean of d * gamma, and of d * gamma * normalised x
};
template <typename T>
inline LnMeans ln_backward_means(const T* d_out, const float* x, std::int64_t width, Moments s, const float* gamma,
                                 float* d_gamma, float* d_beta) {
  const Vec mean = splat(s.mean), rstd = splat(s.rstd);
  Vec sum_d = zero(), sum_dx = zero();
  for_columns(
      0, width, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
        const Vec d = load(d_out + j, span);
        const Vec xh = mul(sub(load(x + j, span), mean), rstd);
        const Vec dg = mul(d, load(gamma + j, span));  // zero in the lanes past the end
        store(d_gamma + j, fma(d, xh, load(d_gamma + j, span)), span);
        store(d_beta + j, add(d, load(d_beta + j, span)), span);
        sum_d = add(sum_d, dg);
        sum_dx = fma(dg, xh, sum_dx);
      });
  return {sum(sum_d) / static_cast<float>(width), sum(sum_dx) / static_cast<float>(width)};
}
template <typename T, typename S>
inline Vec ln_backward_value(const T* d_out, const float* x, const float* gamma, std::int64_t j, S span, Moments s,
                             LnMeans m) {
  const Vec xh = mul(sub(load(x + j, span), splat(s.mean)), splat(s.rstd));
  const Vec dg = mul(load(d_out + j, span), load(gamma + j, span));
  return mul(fnma(xh, splat(m.dx), sub(dg, splat(m.d))), splat(s.rstd));
}
