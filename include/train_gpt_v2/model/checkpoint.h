#pragma once
// Activation checkpointing: keep a block's input only, compute the block again when its gradient is wanted.
//
// `block` must be a pure function of its input and the current parameters: dropout here is a function of counters, so
// the second run gives the same numbers. Parameters that the block uses receive their gradients in place during the
// backward pass. The autocast setting of the forward pass is restored for the second run.

#include <ATen/core/Tensor.h>

#include <functional>

namespace train_gpt_v2 {

at::Tensor checkpoint(std::function<at::Tensor(const at::Tensor&)> block, const at::Tensor& x);

}  // namespace train_gpt_v2
