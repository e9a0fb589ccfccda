#pragma once
// The part of `check` that needs everything a run is made of: one step on the longest batch and one on a usual one,
// saving and loading, room on the disk, and what the whole run will take.
//
// It trains two steps on the live objects and restores nothing, so the process must end or throw them away afterwards.
// Files: one temporary checkpoint where the run directory is or will be, removed again.

#include <functional>
#include <optional>
#include <string_view>

#include "train_gpt_v2/data/sampler.h"
#include "train_gpt_v2/train/batch_memory.h"
#include "train_gpt_v2/train/step_probe.h"

namespace train_gpt_v2 {

struct PreflightResult {
  StepCost longest, usual;  // micro-batches; `usual` has the middle length of the plan
  std::int64_t longest_samples = 0, usual_samples = 0;
  MeasuredBatch half;                                // of the longest batch, where it has two samples or more
  std::optional<std::int64_t> suggested_batch_size;  // train/batch_memory.h
  std::uint64_t memory = 0;                          // bytes that can be had in all, 0 = not known
  double step_seconds = 0;                           // of one optimiser step
  std::int64_t steps_left = 0;                       // until the run's goal
  double total_seconds = 0;
  std::int64_t resumed_step = 0;
  std::uint64_t checkpoint_bytes = 0, free_bytes = 0, wanted_bytes = 0;  // wanted: all files that will be kept
  double save_seconds = 0, load_seconds = 0;
};

// Called as each part begins: "plan", "weights", "step", "save and load", "disk".
using StageCallback = std::function<void(std::string_view)>;

struct PreflightParts {
  CheckpointParts& core;
  Engine& engine;
  const Dataset& train;
  const BatchPlan& plan;
  at::Device device;
  std::int64_t steps_left;
  double next_factor;  // of the learning-rate schedule
  std::string run_directory, build;
};

// Throws MEM001, NUM020 (a loss that is not finite), CKP001 (what is read is not what was written), IO errors.
PreflightResult run_preflight(const PreflightParts& parts, const StageCallback& stage);

}  // namespace train_gpt_v2
