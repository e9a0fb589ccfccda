#pragma once
// Which ranks survive: importance of every triplet (p_i, λ_i, q_i), global budgets over the run, pruning, and the
// orthogonality regulariser of AdaLoRA (algorithms.md §2, §3).
//
// Per optimiser step, in this order: add_regulariser_gradient() before clipping; optimizer step; after_step() with the
// gradients of that step still in place, only for steps that were taken; AdapterSet::apply(). "hard" compaction shrinks
// the tensors and tells which indices live on, so that moments and averages can follow; "soft" is peft's masking of λ
// (importance ties at the threshold all fall, masked λ may regrow until the last event). Steps count from 1.
// One thread. Errors: PFT003 a schedule that cannot take effect, PFT002 a state of other settings, NUM011 non-finite
// importance (nothing is pruned then).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/adapt/adapter_set.h"
#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/io/value.h"

namespace train_gpt_v2 {

struct PruneEvent {
  std::int64_t step = 0, budget = 0;  // budget in ranks or parameters (peft.budget_unit)
};

struct PruneSchedule {
  std::int64_t initial_budget = 0;
  std::vector<PruneEvent> events;  // steps ascend
  // peft's own schedule masks once more at its end, but does not update the importance there.
  bool peft = false;
  std::int64_t tinit = 0;

  // The budget in force after `step`; with peft's schedule its formula between the events too (§2.4).
  std::int64_t budget_at(std::int64_t step) const;
};

// peft.pruning_steps with the linear or cubic curve, or tinit/tfinal/delta_t/target_rank, checked against the run.
PruneSchedule plan_pruning(const PeftOptions& options, const AdapterSet& set, std::int64_t total_steps);

// For one parameter: the indices along `dimension` that live on, ascending. Apply the same to its moments and average.
struct KeptIndices {
  std::string parameter;
  std::int64_t dimension = 0;
  std::vector<std::int64_t> kept;
};

struct PruneResult {
  std::int64_t step = 0, budget = 0;
  std::int64_t ranks_before = 0, ranks_after = 0;
  std::vector<KeptIndices> shrunk;       // hard compaction: parameters that changed shape
  std::vector<std::vector<bool>> masks;  // soft: per adapter, which ranks are on
};

class RankAllocator {
 public:
  RankAllocator(const PeftOptions& options, AdapterSet& set, std::int64_t total_steps);

  // R = mean over factors of ‖PᵀP − I‖_F, ‖QQᵀ − I‖_F.
  double regulariser() const;
  // Adds loss_scale·w·∂R to the gradients of A and B.
  void add_regulariser_gradient(double loss_scale = 1);

  // Updates the importance and prunes when an event is due.
  std::optional<PruneResult> after_step(std::int64_t step);

  const PruneSchedule& schedule() const { return schedule_; }
  bool finished() const { return next_event_ == schedule_.events.size(); }
  std::vector<std::int64_t> ranks() const;          // per adapter; soft: ranks that are on
  std::vector<std::vector<double>> scores() const;  // per adapter and current rank
  // Per adapter, the current ranks as indices into the initial ones.
  const std::vector<std::vector<std::int64_t>>& kept() const { return kept_; }

  // All of it: events done, indices kept, masks, both moving averages of the importance (tensors are shared, not
  // copied). Load after the AdapterSet.
  Value save_state() const;
  void load_state(const Value& state);

 private:
  struct Importance {
    std::string parameter;
    at::Tensor value;            // the parameter itself
    at::Tensor mean, deviation;  // Ī and U of §2.3
  };

  std::string settings() const;
  void start_importance();
  void update_importance();
  PruneResult prune(std::int64_t step, std::int64_t budget);
  std::vector<std::vector<std::int64_t>> select_exact(const std::vector<std::vector<double>>& scores,
                                                      std::int64_t budget) const;
  std::vector<std::vector<bool>> select_threshold(const std::vector<std::vector<double>>& scores,
                                                  std::int64_t budget) const;
  void compact(const std::vector<std::vector<std::int64_t>>& kept, PruneResult& result);
  void apply_masks();

  PeftOptions options_;
  AdapterSet& set_;
  PruneSchedule schedule_;
  std::size_t next_event_ = 0;
  std::vector<std::vector<Importance>> importance_;  // per adapter: A, λ, B; empty once finished or for "magnitude"
  std::vector<std::vector<std::int64_t>> kept_;
  std::vector<std::vector<bool>> masks_;  // soft, from the first event on
};

}  // namespace train_gpt_v2
