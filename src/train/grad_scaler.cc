#include "train_gpt_v2/train/grad_scaler.h"

#include <cmath>
#include <limits>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {
constexpr double kGrowth = 2.0, kBackoff = 0.5;
constexpr double kSmallestScale = 0x1p-10;
constexpr std::int64_t kMaxBadInARow = 20;
}  // namespace

void GradScaler::update(bool finite) {
  if (finite) {
    bad_in_a_row_ = 0;
    if (++growth_tracker_ < growth_interval_) return;
    growth_tracker_ = 0;
    if (scale_ * kGrowth <= std::numeric_limits<float>::max()) scale_ *= kGrowth;
    return;
  }
  scale_ *= kBackoff;
  growth_tracker_ = 0;
  if (++bad_in_a_row_ >= kMaxBadInARow || scale_ < kSmallestScale) {
    throw Error("NUM002",
                concat("fp16 gradients stay non-finite: ", bad_in_a_row_, " steps in a row, loss scale ", scale_))
        .fix("train with train.precision \"bf16\" or \"fp32\", or lower optimizer.learning_rate");
  }
}

Value GradScaler::save_state() const {
  Value state = Value::dict();
  state.set("scale", scale_);
  state.set("growth_factor", kGrowth);
  state.set("backoff_factor", kBackoff);
  state.set("growth_interval", growth_interval_);
  state.set("_growth_tracker", growth_tracker_);
  return state;
}

void GradScaler::load_state(const Value& state) {
  const double scale = state.at("scale").as_double("scaler.scale");
  const std::int64_t tracker = state.at("_growth_tracker").as_int("scaler._growth_tracker");
  if (!std::isfinite(scale) || scale <= 0 || tracker < 0)
    throw Error("CKP007", "the loss scaler's state is out of range");
  scale_ = scale;
  growth_tracker_ = tracker;
  bad_in_a_row_ = 0;
}

}  // namespace train_gpt_v2
