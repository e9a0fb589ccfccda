#pragma once
// Fresh weights with the reference's distributions (architecture.md §1.1, §1.3), from counters instead of a generator.
//
// A tensor's values depend on (seed, its name, element number) only: not on other tensors, threads or the device.
// Linear and convolution: U(±1/sqrt(fan_in)); GPT-2 projections and tables N(0, 0.02), residual projections
// N(0, 0.02/sqrt(2L)); position biases Xavier-uniform; norms 1/0; speed_emb zero. Buffers are left alone.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2 {

void initialise(UnifiedVoice& model, std::uint64_t seed);

// Fills a float tensor with U(-bound, bound) or N(0, deviation) from the stream (seed, name).
void fill_uniform(at::Tensor tensor, double bound, std::uint64_t seed, std::string_view name);
void fill_normal(at::Tensor tensor, double deviation, std::uint64_t seed, std::string_view name);

}  // namespace train_gpt_v2
