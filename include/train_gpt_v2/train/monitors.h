#pragma once
// Best-so-far and early stopping over validation results (algorithms.md §10; interface.md §3).
//
// Each monitor watches one value, `metric[@split]`: losses improve downwards, top-1 upwards. A smaller loss is always
// the new best; early stopping has its own reference that moves only by more than min_improvement. Empty or non-finite
// results are never best. State survives resume (save_state/load_state as JSON).

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/config/options.h"

namespace train_gpt_v2 {

// One line of validation: sums over a fixed set, for one kind of weights and one split.
struct ValidationResult {
  std::string weights = "raw";  // raw | ema
  std::string split = "all";
  double text_loss = 0, mel_loss = 0, mel_top1 = 0, mel_top5 = 0;  // token means
  std::int64_t text_tokens = 0, mel_tokens = 0;
  double seconds = 0;
  bool complete = true;  // false: interrupted, never best
};

struct MetricName {
  std::string metric;         // mel_loss, text_loss, mel_top1
  std::string split = "all";  // language:am ...
  bool larger_is_better() const { return metric == "mel_top1"; }
  std::string file_name() const;  // best_model.pth for mel_loss, best_<metric>.pth otherwise
};

// "mel_loss@language:am" -> its parts; throws CFG for an unknown metric.
MetricName parse_metric(const std::string& text);

struct Improvement {
  MetricName metric;
  double value = 0;
  std::string weights;  // which of raw and ema it was
};

class Monitors {
 public:
  Monitors(const CheckpointOptions& checkpoint, const EarlyStoppingOptions& early_stopping);

  // Takes all results of one validation; returns the metrics that are better than ever before.
  std::vector<Improvement> observe(const std::vector<ValidationResult>& results, bool warmup_done);
  // The file of the last improvement could not be written: what is on the disk is the best of before, so the next
  // validation that beats that one is written again.
  void not_written(const std::string& file_name);
  // After a rollback: the best values that `left` had reached, since their files are still there.
  void keep_best_of(const Monitors& left);
  bool should_stop() const;
  std::int64_t patience_counter() const { return patience_counter_; }
  std::optional<double> best(const std::string& metric) const;
  std::optional<double> early_stopping_reference() const { return reference_; }

  nlohmann::json save_state() const;
  void load_state(const nlohmann::json& state);

 private:
  struct Best {
    MetricName metric;
    std::string name;
    std::optional<double> value;
    std::optional<double> before = {};  // of the last improvement
  };
  std::vector<Best> best_;
  EarlyStoppingOptions early_stopping_;
  MetricName stop_metric_;
  std::optional<double> reference_;
  std::int64_t patience_counter_ = 0;
};

}  // namespace train_gpt_v2
