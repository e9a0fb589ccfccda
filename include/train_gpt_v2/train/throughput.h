#pragma once
// How much arithmetic training does, and what share of the device's peak that is (performance.md §3.1).
//
// Counted is what the model needs: forward and backward of the blocks and heads on real positions, attention causal.
// Padding, recomputation and the optimiser are not work in this sense. Pure functions.

#include <cstdint>
#include <optional>
#include <string>

#include "train_gpt_v2/config/options.h"

namespace train_gpt_v2 {

// What a stretch of training computed on.
struct Workload {
  double positions = 0;                    // prefix, text and codes
  double text_tokens = 0, mel_tokens = 0;  // scored targets, one stop per sample in each
};

// Floating-point operations of full training on `work`: 72 D²L + 6 S D L per position (S = positions per sample, taken
// as equal), 6 D V per scored target.
double training_flops(const ModelOptions& model, const Workload& work);

// Dense peak of tensor cores in FLOP/s by the datasheet, for "fp32" (TF32), "bf16" or "fp16" on a device as
// describe_device() names it; nothing where it is not known.
std::optional<double> peak_flops(const std::string& device, const std::string& precision);

}  // namespace train_gpt_v2
