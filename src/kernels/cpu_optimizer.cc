// The norm of all gradients and the optimizer pass, over fixed blocks of rows.

#include <algorithm>
#include <cmath>

#include "cpu_kernels.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kElements = 16384;  // of one task; part of the definition of the norm's order of summation

// Rows of one task: whole rows of a table with flags, else a stretch of the flat tensor.
struct Stretch {
  std::int64_t tensor, begin, end;  // rows when the tensor has flags, elements otherwise
};

template <typename T>
std::vector<Stretch> stretches(const T* tensors, std::int64_t count) {
  std::vector<Stretch> result;
  for (std::int64_t t = 0; t < count; ++t) {
    const std::int64_t size = tensors[t].row_flags ? tensors[t].rows : tensors[t].rows * tensors[t].width;
    const std::int64_t step = tensors[t].row_flags
                                  ? std::max<std::int64_t>(1, kElements / std::max<std::int64_t>(1, tensors[t].width))
                                  : kElements;
    for (std::int64_t begin = 0; begin < size; begin += step)
      result.push_back({t, begin, std::min(size, begin + step)});
  }
  return result;
}

}  // namespace

double CpuKernels::sum_of_squares(const GradientSpan* spans, std::int64_t count) {
  const std::vector<Stretch> parts = stretches(spans, count);
  sums_.assign(parts.size(), 0.0);
  pool_.run(static_cast<std::int64_t>(parts.size()), [&](std::int64_t i, int) {
    const Stretch& part = parts[static_cast<std::size_t>(i)];
    const GradientSpan& span = spans[part.tensor];
    double total = 0;
    if (span.row_flags) {
      for (std::int64_t r = part.begin; r < part.end; ++r) {
        if (span.row_flags[r]) total += table_.sum_of_squares(span.data + r * span.width, span.width);
      }
    } else {
      total = table_.sum_of_squares(span.data + part.begin, part.end - part.begin);
    }
    sums_[static_cast<std::size_t>(i)] = total;
  });
  double total = 0;
  for (const double s : sums_) total += s;
  return total;
}

void CpuKernels::adamw(const AdamWStep& s, const AdamWTensor* tensors, std::int64_t count) {
  const std::vector<Stretch> parts = stretches(tensors, count);
  const double step = static_cast<double>(s.step);
  const double correction1 = 1 - std::pow(s.beta1, step), correction2 = 1 - std::pow(s.beta2, step);
  std::vector<AdamWCoefficients> coefficients(static_cast<std::size_t>(count));
  for (std::int64_t t = 0; t < count; ++t) {
    coefficients[static_cast<std::size_t>(t)] = {
        static_cast<float>(1 - s.beta1),
        static_cast<float>(s.beta2),
        static_cast<float>(1 - s.beta2),
        static_cast<float>(s.eps),
        static_cast<float>(1 - tensors[t].learning_rate * tensors[t].weight_decay),
        static_cast<float>(tensors[t].learning_rate / correction1),
        static_cast<float>(1 / std::sqrt(correction2)),
        s.gradient_scale,
        static_cast<float>(1 - s.ema_decay),
    };
  }
  pool_.run(static_cast<std::int64_t>(parts.size()), [&](std::int64_t i, int) {
    const Stretch& part = parts[static_cast<std::size_t>(i)];
    const AdamWTensor& t = tensors[part.tensor];
    const AdamWCoefficients& c = coefficients[static_cast<std::size_t>(part.tensor)];
    if (!t.row_flags) return table_.adamw(c, t, part.begin, part.end - part.begin, t.gradient != nullptr);
    for (std::int64_t r = part.begin; r < part.end; ++r) {
      table_.adamw(c, t, r * t.width, t.width, t.gradient && t.row_flags[r]);
    }
  });
}

}  // namespace train_gpt_v2
