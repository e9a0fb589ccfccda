#pragma once
// Real passes, measured: for the choice of the batch size, for `check` and for the banner. A whole step changes weights
// and moments, so whoever probes one throws them away afterwards.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "train_gpt_v2/data/dataset.h"
#include "train_gpt_v2/train/checkpoint_content.h"
#include "train_gpt_v2/train/engine.h"

namespace train_gpt_v2 {

struct StepCost {
  double forward_backward_seconds = 0, update_seconds = 0;
  std::uint64_t peak_memory = 0;  // bytes, of this step alone where the system tells
  std::int64_t positions = 0;     // that the layout computes on
  double loss = 0, grad_norm = 0;
};

// Forward, backward, clipping, update and average of one micro-batch. Throws MEM001 when the memory does not suffice.
StepCost probe_step(CheckpointParts& parts, Engine& engine, const Batch& batch, at::Device device);

// Of forward and backward, for estimates; nothing where the memory does not suffice. Weights and moments stay, the
// gradients are worthless: the next thing to do with the engine is to begin a window.
std::optional<double> seconds_per_position(CheckpointParts& parts, Engine& engine, const Batch& batch);

// The samples of the epoch from the longest on, by the positions they take.
std::vector<std::uint32_t> longest_samples(const Dataset& dataset, std::size_t count);

// Loads the samples; one that cannot be loaded is left out. Fewer samples than asked for are repeated.
Batch load_batch(const Dataset& dataset, std::span<const std::uint32_t> samples, std::size_t count);

}  // namespace train_gpt_v2
