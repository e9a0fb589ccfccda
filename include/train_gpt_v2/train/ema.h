#pragma once
// Exponential moving average of the trainable tensors (algorithms.md §4): fp32 shadows, warm-up, update every k steps
// with decay^k, on the tensors' device or on the CPU.
//
// ē ← ē + (1 − β)(θ − ē) after a successful optimiser step. Validation runs under the average through ScopedSwap,
// which exchanges values in place and restores them on every way out; saving while swapped is refused.

#include <nlohmann/json_fwd.hpp>

#include "train_gpt_v2/adapt/adalora.h"
#include "train_gpt_v2/io/value.h"
#include "train_gpt_v2/train/optimizer.h"
#include "train_gpt_v2/train/parameters.h"

namespace train_gpt_v2 {

class Ema {
 public:
  // Starts as a copy of the current values.
  Ema(ParameterSet& parameters, const EmaOptions& options);

  // Call after each successful optimiser step, or update_with() before it.
  void update();
  // The same as part of the optimizer's own pass over memory, where it makes one: what to give AdamW::step(). Counts
  // the step; empty when no update is due or the averages lie on another device.
  JoinedAverages update_with(const AdamW& optimizer);
  // The decay of the k-th update (k from 1): min(decay, 1 - (1 + t)^-3/4) with t = steps so far when warming up,
  // raised to update_every.
  double decay_at(std::int64_t update) const;
  std::int64_t updates() const { return updates_; }

  // {name: tensor}, shared not copied. Refused while swapped.
  Value save_state() const;
  void load_state(const Value& shadows, std::int64_t updates, std::int64_t steps);
  std::int64_t steps() const { return steps_; }
  // After pruning: the averages keep the same indices as their tensors, or would bring pruned ranks back. Where ranks
  // are only masked, λ's average falls to zero with λ.
  void keep(const std::vector<KeptIndices>& shrunk);
  void mask(const std::string& name, const std::vector<bool>& on);

  class ScopedSwap {
   public:
    explicit ScopedSwap(Ema& ema);
    ~ScopedSwap();
    ScopedSwap(const ScopedSwap&) = delete;
    ScopedSwap& operator=(const ScopedSwap&) = delete;

   private:
    Ema& ema_;
  };

 private:
  void swap();
  torch::Tensor& shadow_of(const std::string& name);
  bool count_step();  // whether an update is due; then updates_ is its number
  ParameterSet& parameters_;
  EmaOptions options_;
  std::vector<torch::Tensor> shadows_;
  std::int64_t updates_ = 0;
  std::int64_t steps_ = 0;  // optimiser steps seen
  bool swapped_ = false;
};

}  // namespace train_gpt_v2
