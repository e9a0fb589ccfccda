#pragma once
// The stability guard: is this step's loss or gradient norm one that the run can digest? (reliability_ux.md §1.5)
//
// Two detectors, each over the last stability.window accepted values: z = (x - mean) / deviation of the loss, and the
// same of the logarithm of the gradient norm (norms are spread like a log-normal, so that a plain z-score would cry
// wolf). Only upward jumps count, and none before kLeastHistory values are known. A deviation smaller than a few
// thousandths of the mean counts as that much, so that a flat loss does not make every ripple an outlier.
//
// What an outlier means is stability.action: warn (train on it; it enters the window cut to the threshold, so that a
// new level becomes the normal one), skip (no update), rollback (to the last checkpoint, going on behind the window
// that did it, as PaLM did: arXiv 2204.02311 §5.1). A step that is not finite is always skipped. max_consecutive bad
// steps in a row (not finite, or outliers that are skipped) end the run, as does one rollback more than max_rollbacks.
//
// Saved in checkpoints: windows and counters (TrainState). Threads: one owner.

#include <cstdint>
#include <deque>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "train_gpt_v2/config/options.h"

namespace train_gpt_v2 {

// Mean and deviation of the last values, and how far a new one lies above them.
class SpikeDetector {
 public:
  static constexpr std::size_t kLeastHistory = 20;

  // `least_deviation` is a share of |mean|, or with `absolute` the deviation itself.
  SpikeDetector(std::int64_t window, double least_deviation, bool absolute);

  double z_score(double value) const;         // 0 while the history is short
  void accept(double value, double z_limit);  // a value beyond the limit enters as the limit

  nlohmann::json save_state() const;
  void load_state(const nlohmann::json& state);

 private:
  struct Moments {
    double mean = 0, deviation = 0;
  };
  Moments moments() const;

  std::size_t window_;
  double least_deviation_;
  bool absolute_;
  std::deque<double> values_;
};

enum class StepAction { kTrain, kWarn, kSkip, kRollback, kStop };

struct StepVerdict {
  StepAction action = StepAction::kTrain;
  double loss_z = 0, norm_z = 0;
  std::string reason;  // "loss 7.2 is not finite", "loss 9.1 stands out (z 8.3 > 6)"; "" when nothing is wrong
};

class StabilityGuard {
 public:
  // With `scaled` (fp16) steps that are not finite belong to the search for the scale and end nothing.
  StabilityGuard(const StabilityOptions& options, bool scaled);

  // Judges the step before its update. An accepted step enters the windows, a bad one the counters.
  StepVerdict judge(double loss, double grad_norm, bool finite);
  // A rollback was carried out: the windows are those of the checkpoint, the counters go on from `before` it.
  void rolled_back(const StabilityGuard& before);

  std::int64_t rollbacks() const { return rollbacks_; }
  nlohmann::json save_state() const;
  void load_state(const nlohmann::json& state);

 private:
  StepAction bad_step(StepAction wanted);

  StabilityOptions options_;
  bool scaled_;
  SpikeDetector loss_, log_norm_;
  std::int64_t bad_in_a_row_ = 0;
  std::int64_t rollbacks_ = 0;  // in the whole run
};

}  // namespace train_gpt_v2
