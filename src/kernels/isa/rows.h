#pragma once
// Row-wise kernels: dropout + residual + LayerNorm, GELU, embedding, column sums. Each function does rows or columns
// [begin, end); sums over rows go into the caller's partial arrays.

// f(typed pointer) for the type that `m` holds.
template <typename F>
inline void with_type(const ConstMatrix& m, F&& f) {
  if (m.type == Num::kFloat) {
    f(static_cast<const float*>(m.data));
  } else {
    f(static_cast<const Bf16*>(m.data));
  }
}
template <typename F>
inline void with_type(const Matrix& m, F&& f) {
  if (m.type == Num::kFloat) {
    f(static_cast<float*>(m.data));
  } else {
    f(static_cast<Bf16*>(m.data));
  }
}
inline std::uint32_t row_id(const DropoutPlace& place, std::int64_t r) {
  return place.rows ? place.rows[r] : 0;
}

void drop_residual_ln(const DropResidualLn& a, std::int64_t begin, std::int64_t end) {
  const Vec scale = splat(a.place.dropout.scale);
  for (std::int64_t r = begin; r < end; ++r) {
    const float* in = a.residual_in ? a.residual_in + r * a.width : nullptr;
    const float* x = in;
    if (a.branch.data) {
      float* out = a.residual_out + r * a.width;
      with_type(a.branch, [&](auto* branch) {
        const auto* b = branch + r * a.branch.stride;
        for_kept_columns(
            a.place.dropout, a.place.site, row_id(a.place, r),
            a.width, [&](std::int64_t j, auto span, std::uint32_t bits) __attribute__((always_inline)) {
              Vec v = load(b + j, span);
              if (a.bias) v = add(v, load(a.bias + j, span));
              if (a.place.dropout.active()) v = mul(keep(bits, v), scale);
              if (in) v = add(load(in + j, span), v);
              store(out + j, v, span);
            });
      });
      x = out;
    }
    if (!a.out.data) continue;
    const Moments s = row_moments(x, a.width);
    a.mean[r] = s.mean;
    a.rstd[r] = s.rstd;
    with_type(a.out, [&](auto* out) { normalise_row(x, a.width, s, a.gamma, a.beta, out + r * a.out.stride); });
  }
}

// partial: [3, width], d_gamma, d_beta, d_bias of these rows; set to zero here.
void ln_backward_drop(const LnBackwardDrop& a, std::int64_t begin, std::int64_t end, float* partial) {
  float *d_gamma = partial, *d_beta = partial + a.width, *d_bias = partial + 2 * a.width;
  std::memset(partial, 0, static_cast<std::size_t>(3 * a.width) * sizeof(float));
  const Vec scale = splat(a.place.dropout.scale);
  const bool drop = a.place.dropout.active();
  for (std::int64_t r = begin; r < end; ++r) {
    float* dx = a.d_residual + r * a.width;
    // One pass over the row for the residual's gradient and, from the same registers, the branch's.
    const auto pass = [&](auto&& value, auto* branch) __attribute__((always_inline)) {
      for_kept_columns(
          drop && branch ? a.place.dropout : Dropout{}, a.place.site, row_id(a.place, r),
          a.width, [&](std::int64_t j, auto span, std::uint32_t bits) __attribute__((always_inline)) {
            Vec v = value(j, span);
            if (!branch) return;
            if (drop) v = mul(keep(bits, v), scale);
            store(branch + j, v, span);
            store(d_bias + j, add(load(d_bias + j, span), v), span);
          });
    };
    const auto both = [&](auto&& value) __attribute__((always_inline)) {
      with_type(
          a.d_branch, [&](auto* branch) __attribute__((always_inline)) {
            pass(value, branch ? branch + r * a.d_branch.stride : branch);
          });
    };
    if (!a.d_out.data) {
      both([&](std::int64_t j, auto span) __attribute__((always_inline)) { return load(dx + j, span); });
      continue;
    }
    with_type(a.d_out, [&](auto* d_out) {
      const auto* d = d_out + r * a.d_out.stride;
      const float* x = a.x + r * a.width;
      const Moments s{a.mean[r], a.rstd[r]};
      const LnMeans m = ln_backward_means(d, x, a.width, s, a.gamma, d_gamma, d_beta);
      both([&](std::int64_t j, auto span) __attribute__((always_inline)) {
        const Vec v = add(load(dx + j, span), ln_backward_value(d, x, a.gamma, j, span, s, m));
        store(dx + j, v, span);
        return v;
      });
    });
  }
}

void double_ln_gather(const DoubleLnGather& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const float* x = a.x + a.rows[r] * a.width;
    float *y = a.y + r * a.width, *statistics = a.statistics + 4 * r;
    const Moments first = row_moments(x, a.width);
    normalise_row(x, a.width, first, a.gamma1, a.beta1, y);
    const Moments second = row_moments(y, a.width);
    with_type(a.out, [&](auto* out) { normalise_row(y, a.width, second, a.gamma2, a.beta2, out + r * a.out.stride); });
    statistics[0] = first.mean;
    statistics[1] = first.rstd;
    statistics[2] = second.mean;
    statistics[3] = second.rstd;
  }
}

// partial: [5, width]: d_gamma1, d_beta1, d_gamma2, d_beta2, and one row of scratch.
void double_ln_gather_backward(const DoubleLnGatherBackward& a, std::int64_t begin, std::int64_t end, float* partial) {
  const DoubleLnGather& f = a.forward;
  const std::int64_t width = f.width;
  std::memset(partial, 0, static_cast<std::size_t>(4 * width) * sizeof(float));
  float* dy = partial + 4 * width;
  for (std::int64_t r = begin; r < end; ++r) {
    const float *y = f.y + r * width, *x = f.x + f.rows[r] * width;
    const Moments first{f.statistics[4 * r], f.statistics[4 * r + 1]};
    const Moments second{f.statistics[4 * r + 2], f.statistics[4 * r + 3]};
    with_type(a.d_out, [&](auto* d_out) {
      const auto* d = d_out + r * a.d_out.stride;
      const LnMeans m = ln_backward_means(d, y, width, second, f.gamma2, partial + 2 * width, partial + 3 * width);
      for_columns(
          0, width, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
            store(dy + j, ln_backward_value(d, y, f.gamma2, j, span, second, m), span);
          });
    });
    float* dx = a.d_x + f.rows[r] * width;
    const LnMeans m = ln_backward_means(dy, x, width, first, f.gamma1, partial, partial + width);
    for_columns(
        0, width, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
          store(dx + j, ln_backward_value(dy, x, f.gamma1, j, span, first, m), span);
        });
  }
}

void bias_gelu(const BiasGelu& a, std::int64_t begin, std::int64_t end) {
  with_type(a.in, [&](auto* in) {
    with_type(a.out, [&](auto* out) {
      for (std::int64_t r = begin; r < end; ++r) {
        const auto* u = in + r * a.in.stride;
        auto* o = out + r * a.out.stride;
        for_columns(
            0, a.width, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
              store(o + j, gelu(add(load(u + j, span), load(a.bias + j, span))), span);
            });
      }
    });
  });
}

void bias_gelu_backward(const BiasGeluBackward& a, std::int64_t begin, std::int64_t end, float* partial) {
  std::memset(partial, 0, static_cast<std::size_t>(a.width) * sizeof(float));
  with_type(a.in, [&](auto* in) {
    with_type(a.grad, [&](auto* grad) {
      for (std::int64_t r = begin; r < end; ++r) {
        const auto* u = in + r * a.in.stride;
        auto* g = grad + r * a.grad.stride;
        for_columns(
            0, a.width, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
              const Vec d = mul(gelu_derivative(add(load(u + j, span), load(a.bias + j, span))), load(g + j, span));
              store(g + j, d, span);
              store(partial + j, add(d, load(partial + j, span)), span);
            });
      }
    });
  });
}

void column_sum(const ColumnSum& a, std::int64_t begin, std::int64_t end) {
  with_type(a.in, [&](auto* in) {
    const auto* times = static_cast<decltype(in)>(a.times.data);
    for_columns(
        begin, end, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
          Vec total = a.accumulate ? load(a.out + j, span) : zero();
          for (std::int64_t r = 0; r < a.rows; ++r) {
            const Vec x = load(in + r * a.in.stride + j, span);
            total = add(total, times ? mul(x, load(times + r * a.times.stride + j, span)) : x);
          }
          store(a.out + j, total, span);
        });
  });
}

void add_partials(const float* partial, std::int64_t chunks, std::int64_t stride, std::int64_t begin, std::int64_t end,
                  float* out, bool accumulate) {
  for_columns(
      begin, end, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
        Vec total = accumulate ? load(out + j, span) : zero();
        for (std::int64_t c = 0; c < chunks; ++c) total = add(total, load(partial + c * stride + j, span));
        store(out + j, total, span);
      });
}

void embed_pack(const EmbedPack& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    const EmbedRow from = a.source[r];
    const float* first = a.table[from.kind] + from.id * a.width;
    const float* second = a.position[from.kind] ? a.position[from.kind] + from.position * a.width : nullptr;
    float* out = a.out + r * a.width;
    for_columns(
        0, a.width, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
          const Vec v = load(first + j, span);
          store(out + j, second ? add(v, load(second + j, span)) : v, span);
        });
  }
}

void embed_scatter(const EmbedScatter& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = 0; r < a.rows; ++r) {
    const EmbedRow to = a.source[r];
    float* table = a.table[to.kind] ? a.table[to.kind] + to.id * a.width : nullptr;
    float* position = a.position[to.kind] ? a.position[to.kind] + to.position * a.width : nullptr;
    const float* g = a.grad + r * a.width;
    for_columns(
        begin, end, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
          const Vec v = load(g + j, span);
          if (table) store(table + j, add(load(table + j, span), v), span);
          if (position) store(position + j, add(load(position + j, span), v), span);
        });
  }
}
