#pragma once
// The counters of a run and everything else an exact resume needs besides tensors (algorithms.md §7.3, §9.3).
//
// Written into checkpoints as JSON under "train_gpt_v2" -> "state". There is no random-number state: plans come from
// (seed, epoch), dropout from (seed, window, micro-batch), sampling from its own seed.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "train_gpt_v2/data/sampler.h"
#include "train_gpt_v2/train/metrics.h"

namespace train_gpt_v2 {

// Where the present plan of an epoch began to count. Another batch, order or data set makes epochs of another length:
// from then on train.epochs are reached `step + (epochs * plan length - batches) / accumulation` steps into the run.
struct PlanStart {
  std::int64_t step = 0;
  std::int64_t batches = 0;  // micro-batches of the present plan that lead to the same place in the data

  nlohmann::json save_state() const;
  // Throws CKP007 for numbers that no run has.
  static PlanStart load_state(const nlohmann::json& state);
};

struct TrainState {
  std::int64_t step = 0;     // successful optimiser steps
  std::int64_t windows = 0;  // accumulation windows begun: step plus the skipped ones
  std::int64_t skipped = 0;
  std::int64_t epoch = 0;  // of the last micro-batch consumed
  BatchCursor cursor;      // the next micro-batch
  PlanStart plan_start;
  std::int64_t samples = 0;       // consumed in the whole run
  double train_seconds = 0;       // wall clock over all processes of this run
  double validation_seconds = 0;  // the same; not part of train_seconds
  bool validation_due = false;    // a validation was interrupted at this step
  std::int64_t last_validated_step = -1;
  std::string origin;  // of a run that began with --resume FILE: that file

  TrainMeters meters;                                               // since the last line of metrics.jsonl
  nlohmann::json monitors;                                          // Monitors::save_state
  double last_text_loss = 0, last_mel_loss = 0, last_mel_top1 = 0;  // of the last window, for the Python trainer

  nlohmann::json save_state() const;
  void load_state(const nlohmann::json& state);
};

}  // namespace train_gpt_v2
