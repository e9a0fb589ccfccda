#pragma once
// What a training run does beside plain AdamW on the model's weights: adapters, their rank allocation, EWC.
//
// One step (algorithms.md §7.2): begin_window() · forward and backward of the engine · complete_gradients() · norm and
// clipping, in place when importance reads the gradients · update · after_step() · Engine::parameters_changed(), which
// brings W' into the weights · EMA. A step that is skipped calls neither of the last two, so importance and ranks never
// see it. An object without adapters and without EWC does nothing.
//
// Adapters own a copy of W0 beside the W' that the executors read (bytes() tells). One thread.
// Errors: PFT001 settings, PFT003 a schedule that cannot take effect in this run, EWC001 a Fisher file of other
// weights.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/adapt/adalora.h"
#include "train_gpt_v2/adapt/adapter_set.h"
#include "train_gpt_v2/adapt/ewc.h"
#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/train/ema.h"
#include "train_gpt_v2/train/metrics.h"
#include "train_gpt_v2/train/optimizer.h"
#include "train_gpt_v2/train/parameters.h"
#include "train_gpt_v2/train/ranks.h"

namespace train_gpt_v2 {

class Adaptation {
 public:
  // Adapters by peft.*, or those of init.peft_adapter, or those that `checkpoint` (null: a fresh start) describes; its
  // base weights must be in the model, its values follow with load_state(). `total_steps` is the schedule's length,
  // `goal_step` where the run ends.
  Adaptation(UnifiedVoice& model, const Options& options, const Value* checkpoint, std::int64_t total_steps,
             std::int64_t goal_step);

  // EWC over what trains, anchored where the weights stand now, or where the state of a checkpoint says. After the
  // weights were loaded; `saved` may be null.
  void protect(ParameterSet& parameters, const Value* saved);

  AdapterSet* adapters() { return adapters_.get(); }
  const AdapterSet* adapters() const { return adapters_.get(); }
  const RankAllocator* allocator() const { return allocator_.get(); }
  const Ewc* ewc() const { return ewc_.get(); }
  bool reads_clipped_gradients() const { return allocator_ && !allocator_->finished(); }
  bool pruning_done() const { return !allocator_ || allocator_->finished(); }
  // after_step() may prune, mask or draw back: averages can only be taken behind it.
  bool changes_weights_after_step() const { return adapters_ || (ewc_ && options_.ewc.mode == "proximal"); }

  void begin_window(ParameterSet& parameters);
  // EWC's pull, dL/dW' to the adapters, AdaLoRA's regulariser. `scale`: the loss scale; where the gradients of several
  // ranks are summed afterwards, divided by their number.
  void complete_gradients(double scale);
  // All ranks: λ "auto" of EWC is what rank 0 chose.
  void agree(Ranks& ranks);
  // `step`: the number of the step just taken, `factor` its factor on the learning rates. Moments, averages and
  // gradient buffers follow where ranks were pruned.
  std::optional<PruneResult> after_step(std::int64_t step, double factor, ParameterSet& parameters, AdamW& optimizer,
                                        Ema* ema);

  // Terms of a line of metrics: computed from the weights as they are, so that a resumed run writes the same.
  OrderedJson measure() const;
  std::string describe() const;  // lines of the banner
  std::size_t bytes() const;     // held beyond model, gradients of what trains, moments and averages

  // "adapters", "allocator" and "ewc" into `ours` (the dict train_gpt_v2); tensors are shared, not copied.
  void save_state(Value& ours, const ParameterSet& parameters) const;
  // From the root of a checkpoint of ours.
  void load_state(const Value& root, ParameterSet& parameters);

 private:
  Options options_;
  std::unique_ptr<AdapterSet> adapters_;
  std::unique_ptr<RankAllocator> allocator_;
  std::unique_ptr<Ewc> ewc_;
  std::vector<int> direct_;  // indices into ParameterSet::tensors: what EWC protects without an adapter
};

}  // namespace train_gpt_v2
