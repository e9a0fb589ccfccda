#include "train_gpt_v2/train/stability.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr double kLeastLossDeviation = 0.005;  // of the mean loss
constexpr double kLeastNormDeviation = 0.05;   // of log norm: 5 % of the norm
constexpr double kSmallestNorm = 1e-30;

double log_norm(double norm) {
  return std::log(std::max(norm, kSmallestNorm));
}

}  // namespace

SpikeDetector::SpikeDetector(std::int64_t window, double least_deviation, bool absolute)
    : window_(static_cast<std::size_t>(window)), least_deviation_(least_deviation), absolute_(absolute) {}

SpikeDetector::Moments SpikeDetector::moments() const {
  const auto count = static_cast<double>(values_.size());
  Moments moments;
  for (const double value : values_) moments.mean += value / count;
  double square = 0;
  for (const double value : values_) square += (value - moments.mean) * (value - moments.mean) / (count - 1);
  const double least = absolute_ ? least_deviation_ : least_deviation_ * std::abs(moments.mean);
  moments.deviation = std::max(std::sqrt(square), least);
  return moments;
}

double SpikeDetector::z_score(double value) const {
  if (values_.size() < std::min(kLeastHistory, window_)) return 0;
  const Moments now = moments();
  return now.deviation > 0 ? (value - now.mean) / now.deviation : 0;
}

void SpikeDetector::accept(double value, double z_limit) {
  if (z_score(value) > z_limit) {
    const Moments now = moments();
    value = now.mean + z_limit * now.deviation;
  }
  values_.push_back(value);
  while (values_.size() > window_) values_.pop_front();
}

nlohmann::json SpikeDetector::save_state() const {
  return values_;
}

void SpikeDetector::load_state(const nlohmann::json& state) {
  values_.clear();
  for (const auto& value : state) {
    values_.push_back(value.get<double>());
    if (!std::isfinite(values_.back())) throw Error("CKP007", "the stability window holds a number that is not finite");
    if (values_.size() > window_) values_.pop_front();
  }
}

StabilityGuard::StabilityGuard(const StabilityOptions& options, bool scaled)
    : options_(options),
      scaled_(scaled),
      loss_(options.window, kLeastLossDeviation, /*absolute=*/false),
      log_norm_(options.window, kLeastNormDeviation, /*absolute=*/true) {}

StepVerdict StabilityGuard::judge(double loss, double grad_norm, bool finite) {
  StepVerdict verdict;
  if (!finite) {
    verdict.reason = concat("loss ", loss, ", gradient norm ", grad_norm, " is not finite");
    verdict.action = scaled_ ? StepAction::kSkip : bad_step(StepAction::kSkip);
    return verdict;
  }
  if (options_.action == "off") {
    bad_in_a_row_ = 0;
    return verdict;
  }
  verdict.loss_z = loss_.z_score(loss);
  verdict.norm_z = log_norm_.z_score(log_norm(grad_norm));
  const auto stands_out = [&](double z, const std::string& what) {
    if (z <= options_.z_threshold) return;
    verdict.reason += concat(verdict.reason.empty() ? "" : ", ", what, " stands out (z ", fixed(z, 1), " > ",
                             exact_number(options_.z_threshold), ")");
  };
  stands_out(verdict.loss_z, concat("loss ", fixed(loss, 4)));
  stands_out(verdict.norm_z, concat("gradient norm ", fixed(grad_norm, 4)));
  if (!verdict.reason.empty() && options_.action != "warn") {
    verdict.action = bad_step(options_.action == "skip" ? StepAction::kSkip : StepAction::kRollback);
    return verdict;
  }
  verdict.action = verdict.reason.empty() ? StepAction::kTrain : StepAction::kWarn;
  bad_in_a_row_ = 0;
  loss_.accept(loss, options_.z_threshold);
  log_norm_.accept(log_norm(grad_norm), options_.z_threshold);
  return verdict;
}

StepAction StabilityGuard::bad_step(StepAction wanted) {
  if (++bad_in_a_row_ >= options_.max_consecutive) return StepAction::kStop;
  return wanted == StepAction::kRollback && rollbacks_ >= options_.max_rollbacks ? StepAction::kStop : wanted;
}

void StabilityGuard::rolled_back(const StabilityGuard& before) {
  bad_in_a_row_ = before.bad_in_a_row_;
  rollbacks_ = before.rollbacks_ + 1;
}

nlohmann::json StabilityGuard::save_state() const {
  return {{"loss", loss_.save_state()},
          {"log_norm", log_norm_.save_state()},
          {"bad_in_a_row", bad_in_a_row_},
          {"rollbacks", rollbacks_}};
}

void StabilityGuard::load_state(const nlohmann::json& state) {
  loss_.load_state(state.value("loss", nlohmann::json::array()));
  log_norm_.load_state(state.value("log_norm", nlohmann::json::array()));
  bad_in_a_row_ = state.value("bad_in_a_row", std::int64_t{0});
  rollbacks_ = state.value("rollbacks", std::int64_t{0});
}

}  // namespace train_gpt_v2
