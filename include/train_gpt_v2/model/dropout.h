#pragma once
// Dropout on tensors. A mask is a pure function of (seed, step, micro-batch, place): resume, recomputation and a change
// of threads or executor give the same one (kernels/dropout.h).
//
// On the CPU the masks are those of kernels/dropout.h, shared with the fused engine. On CUDA torch's kernels draw them
// after seed_cuda_dropout() has set the device generator from the same key; a deterministic run of a build with our own
// CUDA kernels uses the CPU's masks outside attention. Inactive dropout returns its input and touches no generator.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "train_gpt_v2/kernels/dropout.h"
#include "train_gpt_v2/model/segments.h"

namespace train_gpt_v2 {

double dropout_rate(const Dropout& dropout);  // as applied: threshold / 65536

// x [R,D] with dropped elements zeroed and the others scaled. `site` is one of dropout_site_*().
at::Tensor apply_dropout(const at::Tensor& x, const Dropout& dropout, std::uint32_t site, const Segments& segments);

// The same for attention probabilities [H,S,S] of one sequence; CPU tensors.
at::Tensor apply_attention_dropout(const at::Tensor& probabilities, const Dropout& dropout, std::int64_t layer,
                                   std::int64_t sequence);

// For CUDA devices: seeds the generator from the key and the layer (-1: before the first). Nothing elsewhere.
void seed_cuda_dropout(at::Device device, const Dropout& dropout, std::int64_t layer);

}  // namespace train_gpt_v2
