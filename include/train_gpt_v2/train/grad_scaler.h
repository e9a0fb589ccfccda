#pragma once
// Dynamic loss scaling for fp16 (algorithms.md §7.1): scale 65536, doubled after 2000 good steps, halved at a
// non-finite gradient. bf16 and fp32 use none (scale 1).

#include <cstdint>

#include "train_gpt_v2/io/value.h"

namespace train_gpt_v2 {

class GradScaler {
 public:
  explicit GradScaler(double scale = 65536, std::int64_t growth_interval = 2000)
      : scale_(scale), growth_interval_(growth_interval) {}

  double scale() const { return scale_; }
  // After every attempted step. Throws NUM002 when the scale falls below 2^-10 or 20 steps in a row were not finite.
  void update(bool finite);

  // {scale, growth_factor, backoff_factor, growth_interval, _growth_tracker}, as torch.amp.GradScaler.
  Value save_state() const;
  void load_state(const Value& state);

 private:
  double scale_;
  std::int64_t growth_interval_;
  std::int64_t growth_tracker_ = 0;
  std::int64_t bad_in_a_row_ = 0;
};

}  // namespace train_gpt_v2
