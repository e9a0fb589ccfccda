#pragma once
// What trains, and how: every trainable tensor with its gradient buffer, learning rate and decay.
//
// A trainable tensor is usually a whole parameter. With trainable.text_rows "new_only" it is the block of new rows of
// a text table: a view, so that the base rows have no gradient, no moments and no decay and stay bit-identical
// (algorithms.md §8.3). Gradients live in buffers that are allocated once and zeroed in place. With adapters their
// tensors train, and of the model only what trainable.train names; adapted matrices get a buffer for dL/dW' too, from
// which the adapters' gradients follow (adapt/adapter_set.h), until an engine does without it.
//
// Names are state-dict keys; order is that of the reference's parameters() (architecture.md §1.5).

#include <torch/types.h>

#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/adapt/adapter_set.h"
#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2 {

struct TrainableTensor {
  std::string name;
  torch::Tensor value;         // the parameter, or the view of its new rows
  torch::Tensor grad;          // same shape, fp32
  std::int64_t first_row = 0;  // > 0: a view of the rows from here on
  int group = 0;
  std::optional<AdapterRole> role;  // of an adapter's tensor, whose shape may shrink while training
};

struct ParameterGroup {
  std::string name;
  double learning_rate = 0;  // base rate, layer decay and batch scaling included
  double weight_decay = 0;
  std::vector<int> members;  // indices into ParameterSet::tensors
};

struct ParameterSet {
  std::vector<TrainableTensor> tensors;
  std::vector<ParameterGroup> groups;
  std::vector<std::string> all_names;       // every parameter of the model in optimiser-index order
  std::vector<torch::Tensor> masked_grads;  // gradient rows that python_mask zeroes before the norm is taken

  std::int64_t trainable_count() const;              // numbers, not tensors
  bool stored_by_name() const;                       // split text rows or adapters: not resumable in Python
  std::vector<std::string> beside_adapters() const;  // names of the model's own tensors that train

  // Fresh zero buffers for the adapters' gradients, after their tensors were loaded or pruned.
  void renew_adapter_gradients();
  void zero_adapter_gradients();
};

// Decides what trains, allocates the gradients (they become the parameters' .grad) and forms the groups; every
// trainable tensor is in exactly one. Throws CFG errors for a pattern that matches nothing and for a tensor in two
// groups, PFT001 where trainable.train names an adapted matrix.
ParameterSet build_parameter_set(UnifiedVoice& model, const Options& options, std::int64_t effective_batch,
                                 AdapterSet* adapters = nullptr);

// Of the bits of everything that trains: equal parameters, equal text. One synchronisation.
std::string bit_fingerprint(const ParameterSet& parameters);

// Names, sizes, rates and decay of the groups as a table, for the log.
std::string describe_groups(const ParameterSet& parameters);

}  // namespace train_gpt_v2
