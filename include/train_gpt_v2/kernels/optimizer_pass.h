#pragma once
// What the norm of the gradients and the optimizer's pass work on (Kernels::sum_of_squares, Kernels::adamw). Pointers
// belong to the caller and lie where the kernels run, flags in host memory.

#include <cstdint>

#include "train_gpt_v2/kernels/bf16.h"

namespace train_gpt_v2 {

// A gradient for the norm: with row_flags only rows whose flag is set count.
struct GradientSpan {
  const float* data = nullptr;
  std::int64_t rows = 1, width = 0;
  const std::uint8_t* row_flags = nullptr;
};

// One tensor of the optimizer pass: torch's AdamW (decoupled decay, bias correction), the gradient first multiplied by
// gradient_scale. A row whose flag is clear has gradient zero and its gradient memory is not read.
struct AdamWTensor {
  float *parameter = nullptr, *exp_avg = nullptr, *exp_avg_sq = nullptr;
  const float* gradient = nullptr;  // null: zero
  std::int64_t rows = 1, width = 0;
  const std::uint8_t* row_flags = nullptr;
  float* ema = nullptr;  // ema += (1 - ema_decay) * (parameter - ema)
  Bf16* copy = nullptr;  // bf16 copy of the updated parameter
  double learning_rate = 0, weight_decay = 0;
};
struct AdamWStep {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  std::int64_t step = 1;  // 1 at the first update
  float gradient_scale = 1;
  double ema_decay = 1;
};

}  // namespace train_gpt_v2
