#include "train_gpt_v2/train/parameters.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <tuple>

#include "train_gpt_v2/config/patterns.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/train/schedule.h"

namespace train_gpt_v2 {
namespace {

bool is_text_table(const std::string& name) {
  return name == "text_embedding.weight" || name == "text_head.weight" || name == "text_head.bias";
}

// Index of the transformer block a parameter belongs to, or -1.
std::int64_t block_of(const std::string& name) {
  constexpr std::string_view kPrefix = "gpt.h.";
  return starts_with(name, kPrefix) ? std::stoll(name.substr(kPrefix.size())) : -1;
}

// Which parameters train: trainable.train wins over trainable.freeze; conditioners need to be named, and so does
// everything beside adapters.
std::vector<bool> select_trainable(const std::vector<std::string>& names, const Options& options,
                                   const AdapterSet* adapters) {
  const std::vector<bool> frozen = select_names(options.trainable.freeze, names, "trainable.freeze");
  std::vector<bool> train = select_names(options.trainable.train, names, "trainable.train");
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (train[i] && UnifiedVoice::is_conditioner(names[i]) && options.model.conditioning == "precomputed") {
      throw Error("CFG011", concat("trainable.train names ", names[i], ", which gets no gradient"))
          .detail("model.conditioning is \"precomputed\": condition and emo_vec come from files")
          .fix("set model.conditioning to \"online\", or take the name out of trainable.train");
    }
    if (train[i] && adapters && adapters->adapts(names[i])) {
      throw Error("PFT001", concat("trainable.train names ", names[i], ", which carries an adapter"))
          .detail("its weights follow from the adapter")
          .fix("take it out of trainable.train or of peft.target_modules");
    }
    train[i] = train[i] || (!adapters && !UnifiedVoice::is_conditioner(names[i]) && !frozen[i]);
  }
  return train;
}

// Assigns groups, split by block where layer_lr_decay gives each its own rate (algorithms.md §6.2), and by factor where
// peft.lora_plus_ratio lets B learn faster than A (§6.1; not for tables, whose zero factor is A).
void form_groups(ParameterSet& set, const Options& options, std::int64_t effective_batch) {
  const OptimizerOptions& optimizer = options.optimizer;
  const double scaling = batch_scaling(optimizer, effective_batch);
  std::vector<PatternGroup> patterns;
  patterns.reserve(optimizer.groups.size());
  for (const ParameterGroupOptions& group : optimizer.groups) patterns.push_back({group.name, group.match});
  std::vector<std::string> names;
  names.reserve(set.tensors.size());
  for (const TrainableTensor& tensor : set.tensors) names.push_back(tensor.name);
  const std::vector<int> assigned = assign_groups(patterns, names, "optimizer.groups");
  std::map<std::tuple<int, std::int64_t, bool>, int> index;
  for (std::size_t i = 0; i < set.tensors.size(); ++i) {
    TrainableTensor& tensor = set.tensors[i];
    const int chosen = assigned[i];
    const std::int64_t block = optimizer.layer_lr_decay ? block_of(tensor.name) : -1;
    const bool fast =
        options.peft.lora_plus_ratio != 1 && tensor.role == AdapterRole::kB && !ends_with(tensor.name, "embedding_B");
    const auto [at, is_new] = index.try_emplace({chosen, block, fast}, static_cast<int>(set.groups.size()));
    if (is_new) {
      ParameterGroup group;
      group.name = chosen < 0 ? "default" : optimizer.groups[static_cast<std::size_t>(chosen)].name;
      group.learning_rate = optimizer.learning_rate;
      group.weight_decay = optimizer.weight_decay;
      if (chosen >= 0) {
        const ParameterGroupOptions& given = optimizer.groups[static_cast<std::size_t>(chosen)];
        group.learning_rate = given.learning_rate.value_or(optimizer.learning_rate * given.lr_scale.value_or(1.0));
        group.weight_decay = given.weight_decay.value_or(optimizer.weight_decay);
      }
      group.learning_rate *= scaling;
      if (block >= 0) {
        group.name += concat(".h.", block);
        group.learning_rate *= std::pow(*optimizer.layer_lr_decay, static_cast<double>(options.model.layers - block));
      }
      if (fast) {
        group.name += ".B";
        group.learning_rate *= options.peft.lora_plus_ratio;
      }
      set.groups.push_back(std::move(group));
    }
    tensor.group = at->second;
    set.groups[static_cast<std::size_t>(at->second)].members.push_back(static_cast<int>(i));
  }
}

// The adapters' tensors, and where the executors put dL/dW'. With dropout between base and adapter there is none: the
// adapters' gradients come from autograd.
void add_adapters(ParameterSet& set, AdapterSet& adapters, bool gradients_through_weights) {
  for (const torch::Tensor& weight : adapters.weights()) {
    weight.set_requires_grad(gradients_through_weights);
    if (gradients_through_weights) weight.mutable_grad() = torch::zeros_like(weight);
  }
  for (const AdapterParameter& parameter : adapters.parameters()) {
    TrainableTensor tensor;
    tensor.name = parameter.name;
    tensor.value = parameter.tensor;
    tensor.role = parameter.role;
    set.tensors.push_back(std::move(tensor));
  }
  set.renew_adapter_gradients();
}

}  // namespace

std::int64_t ParameterSet::trainable_count() const {
  std::int64_t count = 0;
  for (const TrainableTensor& tensor : tensors) count += tensor.value.numel();
  return count;
}

bool ParameterSet::stored_by_name() const {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const TrainableTensor& tensor) { return tensor.first_row > 0 || tensor.role; });
}

std::vector<std::string> ParameterSet::beside_adapters() const {
  std::vector<std::string> names;
  for (const TrainableTensor& tensor : tensors) {
    if (!tensor.role) names.push_back(tensor.name);
  }
  return names;
}

void ParameterSet::renew_adapter_gradients() {
  for (TrainableTensor& tensor : tensors) {
    if (!tensor.role) continue;
    tensor.value.mutable_grad() = torch::zeros_like(tensor.value.detach());
    tensor.grad = tensor.value.grad();
  }
}

void ParameterSet::zero_adapter_gradients() {
  const torch::NoGradGuard no_grad;
  for (TrainableTensor& tensor : tensors) {
    if (tensor.role) tensor.grad.zero_();
  }
}

ParameterSet build_parameter_set(UnifiedVoice& model, const Options& options, std::int64_t effective_batch,
                                 AdapterSet* adapters) {
  ParameterSet set;
  const auto named = model.named_parameters();
  for (const auto& item : named) set.all_names.push_back(item.key());
  const std::vector<bool> training = select_trainable(set.all_names, options, adapters);
  const std::string text_rows = options.trainable.text_rows.value_or("all");
  const std::int64_t base_rows = std::min(options.trainable.base_text_rows, options.model.text_rows());
  for (std::size_t i = 0; i < set.all_names.size(); ++i) {
    const auto& item = named[i];
    const torch::Tensor& parameter = item.value();
    parameter.set_requires_grad(training[i]);
    if (!training[i]) continue;
    parameter.mutable_grad() = torch::zeros_like(parameter);
    TrainableTensor tensor{item.key(), parameter, parameter.mutable_grad(), 0, 0, std::nullopt};
    if (is_text_table(item.key()) && text_rows == "new_only") {
      const std::int64_t rows = parameter.size(0) - base_rows;
      if (rows == 0) {
        parameter.set_requires_grad(false);
        continue;
      }
      tensor.first_row = base_rows;
      tensor.value = parameter.detach().narrow(0, base_rows, rows);
      tensor.grad = parameter.grad().narrow(0, base_rows, rows);
    } else if (is_text_table(item.key()) && text_rows == "python_mask" && base_rows < parameter.size(0)) {
      set.masked_grads.push_back(parameter.grad().narrow(0, 0, base_rows));
    }
    set.tensors.push_back(std::move(tensor));
  }
  if (adapters) add_adapters(set, *adapters, options.peft.lora_dropout == 0);
  if (set.tensors.empty()) {
    throw Error("CFG013", "nothing trains: every parameter is frozen")
        .fix("correct trainable.freeze and trainable.train");
  }
  form_groups(set, options, effective_batch);
  return set;
}

std::string bit_fingerprint(const ParameterSet& parameters) {
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> sums;
  sums.reserve(parameters.tensors.size());
  for (const TrainableTensor& tensor : parameters.tensors) {
    sums.push_back(tensor.value.detach().contiguous().view(torch::kInt32).sum(torch::kInt64));
  }
  const torch::Tensor all = torch::stack(sums).cpu();
  Sha256 hash;
  hash.update(all.const_data_ptr(), all.nbytes());
  return hash.hex();
}

std::string describe_groups(const ParameterSet& parameters) {
  std::vector<std::vector<std::string>> rows{{"group", "tensors", "numbers", "learning rate", "weight decay"}};
  for (const ParameterGroup& group : parameters.groups) {
    std::int64_t count = 0;
    for (const int member : group.members) count += parameters.tensors[static_cast<std::size_t>(member)].value.numel();
    rows.push_back({group.name, std::to_string(group.members.size()), human_count(static_cast<std::uint64_t>(count)),
                    exact_number(group.learning_rate), exact_number(group.weight_decay)});
  }
  return table(rows);
}

}  // namespace train_gpt_v2
