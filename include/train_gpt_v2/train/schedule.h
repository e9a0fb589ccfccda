#pragma once
// Learning-rate schedules as pure functions of the number of completed optimiser steps (algorithms.md §6.3).
//
// Nothing is multiplied in place, so a resumed run computes the same rates as an uninterrupted one. As in the Python
// trainer (HF cosine over LambdaLR), the first optimiser step runs at factor(0), which is 0 when there is a warm-up.

#include <cstdint>
#include <string>

#include "train_gpt_v2/config/options.h"

namespace train_gpt_v2 {

class LearningRateSchedule {
 public:
  // `total_steps` as resolved from the options and the data; schedules that need no horizon ignore it.
  LearningRateSchedule(const OptimizerOptions& options, std::int64_t total_steps);

  // Multiplier of the base rate for the optimiser step that follows `completed` finished ones.
  double factor(std::int64_t completed) const;
  std::int64_t total_steps() const { return total_steps_; }

 private:
  std::string kind_;
  std::int64_t warmup_;
  std::int64_t total_steps_;
  double min_ratio_;
};

// The multiplier that optimizer.lr_scaling asks for at this effective batch (1 for "none").
double batch_scaling(const OptimizerOptions& options, std::int64_t effective_batch);

}  // namespace train_gpt_v2
