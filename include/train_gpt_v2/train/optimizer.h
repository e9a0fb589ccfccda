#pragma once
// AdamW over a ParameterSet, with gradient norm, clipping and the state that goes into checkpoints: one pass of
// kernels/kernels.h for fp32 tensors on one device, at::_fused_adamw_ elsewhere. Moments are fp32 on the device of
// their parameter.
//
// Order within a step: algorithms.md §7.2. One owner of the learning rate: it is passed in at every step.

#include <memory>
#include <optional>
#include <vector>

#include "train_gpt_v2/adapt/adalora.h"
#include "train_gpt_v2/io/value.h"
#include "train_gpt_v2/kernels/kernels.h"
#include "train_gpt_v2/train/optimizer_shards.h"
#include "train_gpt_v2/train/parameters.h"

namespace train_gpt_v2 {

struct ClipResult {
  double norm = 0;               // L2 over all trainable tensors before clipping; summed in double
  std::vector<double> by_group;  // the same per group
  bool finite = true;
  bool clipped = false;
};

// Moving averages that an update brings up to date in its own pass (Ema::update_with): average += (1 - decay)
// (parameter - average), one contiguous float array a tensor, on its device. `joined`: this pass counts as the
// averages' step, even when `values` is empty because none was due.
struct JoinedAverages {
  std::vector<float*> values;
  double decay = 1;
  bool joined = false;
};

class AdamW {
 public:
  // With `shards` each tensor's moments live on its owner alone, and step() and save_state() are calls of all ranks.
  AdamW(ParameterSet& parameters, const OptimizerOptions& options, const OptimizerShards* shards = nullptr);

  // Norm of the gradients times `grad_scale` (1 / loss scale); scales the gradients by it and by
  // min(1, max_norm / (norm + 1e-6)). max_norm 0: no clipping. A non-finite norm leaves them as they are. Without
  // `in_place` the kernels leave the scaling to the step() that follows, which saves a pass over all gradients; who
  // reads them after this call (AdaLoRA's importance) asks for `in_place`.
  ClipResult unscale_and_clip(double grad_scale, double max_norm, bool per_group, bool in_place = true);
  bool one_pass() const { return kernels_ != nullptr && !shards_; }
  // One update with each group's rate times `factor`. Averages only where one_pass().
  void step(double factor, const JoinedAverages& averages = {});

  // {"state": {index: {step, exp_avg, exp_avg_sq}}, "param_groups": [...]} in the Python trainer's form: indices count
  // ParameterSet::all_names; the rates written are those of the step that follows (`next_factor`). Tensors are shared,
  // not copied.
  Value save_state(double next_factor) const;
  // Split text rows and adapters are stored by name instead.
  // Reads both. `names[i]` is the parameter that index i stands for. Names and shapes are compared before any copy; a
  // whole table's moments serve a view of its new rows. A tensor without saved moments is an error unless
  // `missing_start_anew`. Throws CKP errors.
  void load_state(const Value& state, const std::vector<std::string>& names, bool missing_start_anew);

  // After pruning: the moments keep the same indices as their tensors.
  void keep(const std::vector<KeptIndices>& shrunk);

 private:
  struct Moments {
    torch::Tensor exp_avg, exp_avg_sq,
        step;  // step: float32 scalar, as in Python; undefined on other ranks than the owner
  };
  // The tensors of a group that this rank updates.
  std::vector<std::size_t> own_members(const ParameterGroup& group) const;
  Moments moments_of(std::size_t tensor) const;  // with shards: a call of all ranks
  ParameterSet& parameters_;
  OptimizerOptions options_;
  const OptimizerShards* shards_;
  std::vector<double> squares();
  void step_in_one_pass(const ParameterGroup& group, double scale, double learning_rate,
                        const JoinedAverages& averages);

  std::vector<Moments> moments_;
  std::vector<double> pending_scale_;  // per group; what step() multiplies the gradients by
  std::unique_ptr<Kernels> kernels_;   // null where the tensors are not contiguous fp32 on one device with kernels
};

}  // namespace train_gpt_v2
