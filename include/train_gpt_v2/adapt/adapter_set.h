#pragma once
// All adapters of a model: which matrices carry one, with which rank and scale, and the traffic between the adapters
// and the weight tensors that the executors read.
//
// Per optimiser step: apply() (W' into the weights) · forward and backward, dL/dW' lands in the weights' .grad, or the
// executor leaves only its products with the factors (leave_products) · push_gradients() · clip, update · apply(). With
// dropout between base and adapter the weights hold W0 while training (use_base()) and the hooks of hooks.h run
// instead. `weight` tensors are shared with the model and must keep their storage. One thread. Errors: PFT001 settings
// that fit nothing, PFT002 stored tensors that do not fit.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "train_gpt_v2/adapt/adapter.h"
#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/io/value.h"
#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2 {

// A matrix that may carry an adapter.
struct AdapterTarget {
  std::string module;  // the parameter's name without ".weight"
  at::Tensor weight;   // stored layout, shared with the model
  WeightLayout layout = WeightLayout::kInOut;
  bool embedding = false;
};

// Every matrix and table of the model, in the order of its state dict.
std::vector<AdapterTarget> adapter_targets(UnifiedVoice& model);

// What the options ask for: one spec per target matched by peft.target_modules, ranks and alphas resolved (first
// matching pattern wins), ranks of conformer modules lowered until their share of the adapter parameters is at most
// peft.conformer_budget_share. Conformer modules are refused without on-line conditioning: they would get no gradient.
// Throws PFT001.
std::vector<AdapterSpec> plan_adapters(const PeftOptions& options, const std::vector<AdapterTarget>& targets,
                                       bool online_conditioning);

class AdapterSet {
 public:
  // One adapter per spec over the target of that name; every base is copied from the target's weight as it is now.
  AdapterSet(const std::vector<AdapterSpec>& specs, const std::vector<AdapterTarget>& targets);

  void initialise(std::uint64_t seed);

  std::vector<Adapter>& adapters() { return adapters_; }
  const std::vector<Adapter>& adapters() const { return adapters_; }
  const std::vector<at::Tensor>& weights() const { return weights_; }  // what the executors read, one per adapter
  const Adapter* find(const std::string& module) const;
  bool adapts(const std::string& parameter) const;  // "gpt.h.0.attn.c_attn.weight"
  AdapterKind kind() const { return adapters_.front().spec().kind; }

  std::vector<AdapterParameter> parameters() const;  // of all adapters, in order
  std::int64_t parameter_count() const;
  std::int64_t rank_total() const;

  void apply();     // norms anew, then W' into every weight
  void use_base();  // norms anew, then W0 into every weight

  // From now on the executor leaves these of dL/dW' of adapter i; its weight has no .grad any more. The tensors are
  // made here and anew whenever apply() finds another rank.
  void leave_products(std::size_t i);
  const GradientProducts& products(std::size_t i) const { return products_[i]; }

  // Turns the dL/dW' accumulated in the weights' .grad, or the products left of it, into gradients of the adapters'
  // parameters, and zeroes it.
  void push_gradients();
  std::size_t gradient_bytes() const;  // of what push_gradients() reads

  // {parameter name: tensor}, shared, not copied; shapes carry the current ranks. load_state takes exactly these names.
  Value save_state() const;
  void load_state(const Value& state);

  // One row per kind of matrix: rank, shape, count and parameters; then the totals, per layer too.
  std::string describe() const;
  // One row per kind of matrix and one column per layer; `ranks` per adapter.
  std::string rank_chart(const std::vector<std::int64_t>& ranks) const;

 private:
  std::vector<Adapter> adapters_;
  std::vector<at::Tensor> weights_;
  std::vector<GradientProducts> products_;  // undefined tensors where the weight has a .grad
};

}  // namespace train_gpt_v2
