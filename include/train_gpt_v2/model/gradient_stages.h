#pragma once
// In which order a backward pass through the GPT finishes the gradients of its parameters: stage 0 are heads and last
// norms, stage 1 + k is the k-th block from the top, the last stage is everything below the blocks. The gradients of a
// stage are final only after its backward is over, so whoever sends them (train/gradient_sync.h) sorts by it.

#include <cstdint>
#include <functional>
#include <string>

#include "train_gpt_v2/config/options.h"

namespace train_gpt_v2 {

std::int64_t gradient_stages(const ModelOptions& options);  // how many there are
// Of a parameter by its state-dict key.
std::int64_t gradient_stage(const ModelOptions& options, const std::string& key);

// Told that the gradients of `stage` and of every stage before it are final for the micro-batch at hand.
using StageListener = std::function<void(std::int64_t stage)>;

}  // namespace train_gpt_v2
