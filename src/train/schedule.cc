#include "train_gpt_v2/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {

LearningRateSchedule::LearningRateSchedule(const OptimizerOptions& options, std::int64_t total_steps)
    : kind_(options.schedule),
      warmup_(options.warmup_steps),
      total_steps_(total_steps),
      min_ratio_(options.min_lr_ratio) {}

double LearningRateSchedule::factor(std::int64_t completed) const {
  const double t = static_cast<double>(completed), warmup = static_cast<double>(warmup_);
  if (completed < warmup_) return t / std::max(1.0, warmup);
  if (kind_ == "constant") return 1.0;
  const double span = std::max(1.0, static_cast<double>(total_steps_) - warmup);
  double progress = (t - warmup) / span;
  if (kind_ == "hf_cosine") {
    // Exactly HF's: no clamp, so past the horizon the rate climbs again.
    return std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * 0.5 * 2.0 * progress)));
  }
  progress = std::clamp(progress, 0.0, 1.0);
  double shape = 1.0;
  if (kind_ == "cosine") {
    shape = 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  } else if (kind_ == "linear") {
    shape = 1.0 - progress;
  } else if (kind_ == "wsd") {
    // Warm-up, stable, then 1 - sqrt over the last fifth of the horizon (arXiv 2508.01483).
    constexpr double kCooldown = 0.2;
    const double into = (progress - (1.0 - kCooldown)) / kCooldown;
    shape = into <= 0 ? 1.0 : 1.0 - std::sqrt(std::min(1.0, into));
  } else {
    TGV2_CHECK(false);
  }
  return min_ratio_ + (1.0 - min_ratio_) * shape;
}

double batch_scaling(const OptimizerOptions& options, std::int64_t effective_batch) {
  const double ratio = static_cast<double>(effective_batch) / static_cast<double>(options.reference_batch_size);
  if (options.lr_scaling == "linear") return ratio;
  if (options.lr_scaling == "sqrt") return std::sqrt(ratio);
  return 1.0;
}

}  // namespace train_gpt_v2
