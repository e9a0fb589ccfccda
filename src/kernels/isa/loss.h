#pragma once
// Cross entropy of one row, its gradient in place; squares of a gradient; the optimizer pass.

// How many of columns [begin, end) stand before a target of value t: greater ones, and equal ones when `ties` is set.
template <typename T>
inline std::int32_t count_before(const T* z, const float* bias, std::int64_t begin, std::int64_t end, float t,
                                 bool ties) {
  const Vec target = splat(t);
  std::int32_t count = 0;
  std::int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) {
    const Vec v = add(load(z + j), load(bias + j));
    count += ties ? kLanes - count_greater(target, v) : count_greater(v, target);
  }
  if (j < end) {
    const int n = static_cast<int>(end - j);
    const Vec v = add(load(z + j, n), load(bias + j, n));
    count += ties ? n - count_greater(target, v, n) : count_greater(v, target, n);
  }
  return count;
}

inline void put(float* p, float v) {
  *p = v;
}
inline void put(Bf16* p, float v) {
  *p = to_bf16(v);
}
inline float get(const float* p) {
  return *p;
}
inline float get(const Bf16* p) {
  return to_float(*p);
}

template <typename T>
inline void cross_entropy_row(const CrossEntropy& a, T* z, std::int64_t r) {
  const std::int64_t classes = a.classes, target = a.targets[r];
  const float* bias = a.bias;
  const float value = get(z + target) + bias[target];
  if (a.rank) {
    a.rank[r] =
        count_before(z, bias, 0, target, value, true) + count_before(z, bias, target + 1, classes, value, false);
  }
  Vec highest = splat(value);
  std::int64_t j = 0;
  for (; j + kLanes <= classes; j += kLanes) highest = max(highest, add(load(z + j), load(bias + j)));
  float m = greatest(highest);
  for (std::int64_t k = j; k < classes; ++k) {
    const float v = get(z + k) + bias[k];
    m = m > v ? m : v;
  }
  const Vec top = splat(m);
  const int tail = static_cast<int>(classes - j);
  const std::uint32_t tail_bits = (1u << tail) - 1u;
  const auto exp_at = [&](std::int64_t k, auto span) __attribute__((always_inline)) {
    return exp(sub(add(load(z + k, span), load(bias + k, span)), top));
  };
  // A float row keeps the exponentials in place; a bf16 row would lose digits and computes them twice.
  constexpr bool kInPlace = sizeof(T) == sizeof(float);
  const bool in_place = kInPlace && a.gradient;
  Vec total = zero();
  for (std::int64_t k = 0; k < j; k += kLanes) {
    const Vec e = exp_at(k, Whole{});
    if (in_place) store(z + k, e);
    total = add(total, e);
  }
  if (tail) {
    const Vec e = exp_at(j, Part{tail});
    if (in_place) store(z + j, e, tail);
    total = add(total, keep(tail_bits, e));  // the lanes past the end hold exp(0 - top)
  }
  const float s = sum(total);
  a.loss[r] = m + __builtin_logf(s) - value;
  if (!a.gradient) return;
  const Vec factor = splat(a.coefficient / s);
  const float probability = (in_place ? get(z + target) : __builtin_expf(value - m)) / s;
  for_columns(
      0, classes, [&](std::int64_t k, auto span) __attribute__((always_inline)) {
        store(z + k, mul(factor, in_place ? load(z + k, span) : exp_at(k, span)), span);
      });
  put(z + target, a.coefficient * (probability - 1.f));
}

void cross_entropy(const CrossEntropy& a, std::int64_t r) {
  with_type(a.logits, [&](auto* logits) { cross_entropy_row(a, logits + r * a.logits.stride, r); });
}

// Float sums over 4096 elements, double above.
double sum_of_squares(const float* x, std::int64_t count) {
  double total = 0;
  for (std::int64_t begin = 0; begin < count; begin += 4096) {
    const std::int64_t end = begin + 4096 < count ? begin + 4096 : count;
    Vec s0 = zero(), s1 = zero();
    std::int64_t j = begin;
    for (; j + 2 * kLanes <= end; j += 2 * kLanes) {
      const Vec a = load(x + j), b = load(x + j + kLanes);
      s0 = fma(a, a, s0);
      s1 = fma(b, b, s1);
    }
    total += static_cast<double>(sum(add(s0, s1)));
    for (; j < end; ++j) total += static_cast<double>(x[j]) * static_cast<double>(x[j]);
  }
  return total;
}

// Elements [begin, begin + count) of one tensor; torch.optim.AdamW: p *= 1 - lr wd; m, v; p -= lr/c1 m /
// (sqrt(v)/sqrt(c2) + eps).
void adamw(const AdamWCoefficients& c, const AdamWTensor& t, std::int64_t begin, std::int64_t count,
           bool has_gradient) {
  const Vec one_minus_beta1 = splat(c.one_minus_beta1), beta2 = splat(c.beta2),
            one_minus_beta2 = splat(c.one_minus_beta2);
  const Vec grad_scale = splat(c.gradient_scale), decay = splat(c.decay);
  const Vec step = splat(c.step_size), root_c2 = splat(c.inverse_root_correction2), eps = splat(c.eps);
  const Vec ema_weight = splat(c.one_minus_ema);
  for_columns(
      begin, begin + count, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
        const Vec g = has_gradient ? mul(load(t.gradient + j, span), grad_scale) : zero();
        Vec m = load(t.exp_avg + j, span), v = load(t.exp_avg_sq + j, span), p = load(t.parameter + j, span);
        m = fma(one_minus_beta1, sub(g, m), m);
        v = fma(mul(g, g), one_minus_beta2, mul(v, beta2));
        p = mul(p, decay);
        p = fnma(step, div(m, fma(root(v), root_c2, eps)), p);
        store(t.exp_avg + j, m, span);
        store(t.exp_avg_sq + j, v, span);
        store(t.parameter + j, p, span);
        if (t.copy) store(t.copy + j, p, span);
        if (t.ema) {
          const Vec e = load(t.ema + j, span);
          store(t.ema + j, fma(ema_weight, sub(p, e), e), span);
        }
      });
}

void convert(Bf16* to, const float* from, std::int64_t count) {
  for_columns(
      0, count, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
        store(to + j, load(from + j, span), span);
      });
}
