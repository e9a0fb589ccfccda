#pragma once
// Which rank keeps the moments of which tensor, and the traffic that follows from it: ZeRO stage 1 (Rajbhandari et al.,
// "ZeRO", SC 2020), by whole tensors.
//
// Every rank has all gradients; the owner of a tensor updates it and sends its new value. Memory for moments falls to
// the largest share (describe() tells), the network carries every parameter once more per step. One caller.

#include <torch/types.h>

#include <string>
#include <vector>

#include "train_gpt_v2/train/ranks.h"

namespace train_gpt_v2 {

class OptimizerShards {
 public:
  // The largest tensor goes to the rank with the least so far. Shapes may shrink later; owners stay.
  OptimizerShards(Ranks& ranks, const std::vector<torch::Tensor>& tensors);

  bool mine(std::size_t tensor) const { return owners_[tensor] == ranks_.rank(); }
  const std::vector<int>& owners() const { return owners_; }
  std::string describe() const;

  // All: the tensors' values from their owners to everybody.
  void exchange(const std::vector<torch::Tensor>& tensors) const;
  // All: one tensor from its owner; elsewhere `like` gives shape and device, and a new tensor is returned.
  torch::Tensor fetch(std::size_t tensor, const torch::Tensor& owned, const torch::Tensor& like) const;

 private:
  Ranks& ranks_;
  std::vector<int> owners_;
  std::vector<std::int64_t> numbers_;  // by rank
};

}  // namespace train_gpt_v2
