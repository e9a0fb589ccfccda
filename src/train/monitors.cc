#include "train_gpt_v2/train/monitors.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

bool better(const MetricName& metric, double value, double reference, double margin) {
  return metric.larger_is_better() ? value > reference + margin : value < reference - margin;
}

double value_of(const ValidationResult& result, const MetricName& metric) {
  if (metric.metric == "text_loss") return result.text_loss;
  if (metric.metric == "mel_top1") return result.mel_top1;
  return result.mel_loss;
}

// The better of raw and EMA for this metric; nothing when the result is empty, partial or not finite.
std::optional<Improvement> best_of(const std::vector<ValidationResult>& results, const MetricName& metric) {
  std::optional<Improvement> best;
  for (const ValidationResult& result : results) {
    if (result.split != metric.split || !result.complete) continue;
    if ((metric.metric == "text_loss" ? result.text_tokens : result.mel_tokens) == 0) continue;
    const double value = value_of(result, metric);
    if (!std::isfinite(value)) continue;
    if (!best || better(metric, value, best->value, 0)) best = Improvement{metric, value, result.weights};
  }
  return best;
}

nlohmann::json optional_json(const std::optional<double>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

std::optional<double> json_optional(const nlohmann::json& value) {
  return value.is_number() ? std::optional<double>(value.get<double>()) : std::nullopt;
}

}  // namespace

std::string MetricName::file_name() const {
  if (metric == "mel_loss" && split == "all") return "best_model.pth";
  std::string name = "best_" + metric + (split == "all" ? "" : "@" + split);
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '@' || c == ':' || c == '/'; }, '_');
  return name + ".pth";
}

MetricName parse_metric(const std::string& text) {
  const std::size_t at = text.find('@');
  MetricName name{text.substr(0, at), at == std::string::npos ? "all" : text.substr(at + 1)};
  const std::vector<std::string> known{"mel_loss", "text_loss", "mel_top1"};
  if (std::find(known.begin(), known.end(), name.metric) == known.end() || name.split.empty()) {
    throw Error("CFG001", concat("unknown metric \"", text, "\""))
        .detail("known: mel_loss, text_loss, mel_top1, each with an optional @language:xx or @speaker:held_out");
  }
  return name;
}

Monitors::Monitors(const CheckpointOptions& checkpoint, const EarlyStoppingOptions& early_stopping)
    : early_stopping_(early_stopping), stop_metric_(parse_metric(early_stopping.metric)) {
  for (const std::string& name : checkpoint.best_metrics) best_.push_back({parse_metric(name), name, std::nullopt});
}

std::vector<Improvement> Monitors::observe(const std::vector<ValidationResult>& results, bool warmup_done) {
  std::vector<Improvement> improved;
  for (Best& best : best_) {
    const auto value = best_of(results, best.metric);
    if (!value || (best.value && !better(best.metric, value->value, *best.value, 0))) continue;
    best.before = std::exchange(best.value, value->value);
    improved.push_back(*value);
  }
  const auto watched = best_of(results, stop_metric_);
  if (watched && warmup_done) {
    if (!reference_ || better(stop_metric_, watched->value, *reference_, early_stopping_.min_improvement)) {
      reference_ = watched->value;
      patience_counter_ = 0;
    } else {
      ++patience_counter_;
    }
  }
  return improved;
}

void Monitors::not_written(const std::string& file_name) {
  for (Best& best : best_) {
    if (best.metric.file_name() == file_name) best.value = best.before;
  }
}

void Monitors::keep_best_of(const Monitors& left) {
  for (std::size_t i = 0; i < best_.size(); ++i) {
    const std::optional<double>& value = left.best_[i].value;
    if (value && (!best_[i].value || better(best_[i].metric, *value, *best_[i].value, 0))) best_[i].value = value;
  }
}

bool Monitors::should_stop() const {
  return early_stopping_.enabled && patience_counter_ >= early_stopping_.patience;
}

std::optional<double> Monitors::best(const std::string& metric) const {
  for (const Best& best : best_) {
    if (best.name == metric) return best.value;
  }
  return std::nullopt;
}

nlohmann::json Monitors::save_state() const {
  nlohmann::json best = nlohmann::json::object();
  for (const Best& one : best_) best[one.name] = optional_json(one.value);
  return {
      {"best", best}, {"early_stopping_reference", optional_json(reference_)}, {"patience_counter", patience_counter_}};
}

void Monitors::load_state(const nlohmann::json& state) {
  for (Best& one : best_)
    one.value = json_optional(state.value("best", nlohmann::json::object()).value(one.name, nlohmann::json()));
  reference_ = json_optional(state.value("early_stopping_reference", nlohmann::json()));
  patience_counter_ = state.value("patience_counter", std::int64_t{0});
}

}  // namespace train_gpt_v2
