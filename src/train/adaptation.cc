#include "train_gpt_v2/train/adaptation.h"

#include <algorithm>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/train/adapter_checkpoint.h"

namespace train_gpt_v2 {
namespace {

// The adapters of a folder, to be trained on.
std::unique_ptr<AdapterSet> continue_folder(UnifiedVoice& model, const Options& options) {
  const std::string& folder = options.init.peft_adapter;
  std::unique_ptr<AdapterSet> set = apply_peft_folder(model, folder);
  if (adapter_kind_name(set->kind()) != options.peft.method) {
    throw Error("PFT001", concat("init.peft_adapter holds ", adapter_kind_name(set->kind()),
                                 " adapters, peft.method is \"", options.peft.method, "\""))
        .where(folder)
        .fix("set peft.method to what the folder holds");
  }
  for (const Adapter& adapter : set->adapters()) {
    if (adapter.rank() == adapter.spec().rank) continue;
    throw Error("PFT001", "the ranks of this AdaLoRA adapter are allocated already; training cannot go on from it")
        .where(folder)
        .detail(concat(adapter.spec().module, " has ", adapter.rank(), " of ", adapter.spec().rank, " ranks"))
        .fix("merge it into the base (train_gpt_v2 merge) and start from that with new adapters");
  }
  log_info("adapters", "ranks, alphas and modules are those of ", folder,
           "; peft.rank, peft.target_modules and the like are not used");
  return set;
}

}  // namespace

Adaptation::Adaptation(UnifiedVoice& model, const Options& options, const Value* checkpoint, std::int64_t total_steps,
                       std::int64_t goal_step)
    : options_(options) {
  if (!options.peft.enabled()) {
    if (checkpoint || options.init.peft_adapter.empty()) return;
    throw Error("PFT001", "init.peft_adapter is set, but peft.method is null")
        .where(options.init.peft_adapter)
        .fix("set peft.method to the folder's kind to train its adapters, or merge it into the weights first");
  }
  const std::vector<AdapterTarget> targets = adapter_targets(model);
  if (checkpoint) {
    const std::vector<AdapterSpec> specs = stored_adapter_specs(*checkpoint, targets);
    if (adapter_kind_name(specs.front().kind) != options.peft.method) {
      throw Error("CKP007", "a checkpoint's adapters are of another kind than its configuration says");
    }
    adapters_ = std::make_unique<AdapterSet>(specs, targets);
  } else if (!options.init.peft_adapter.empty()) {
    adapters_ = continue_folder(model, options);
  } else {
    const bool online = options.model.conditioning == "online";
    adapters_ = std::make_unique<AdapterSet>(plan_adapters(options.peft, targets, online), targets);
    adapters_->initialise(static_cast<std::uint64_t>(options.train.seed));
  }
  if (!options.peft.adaptive()) return;
  allocator_ = std::make_unique<RankAllocator>(options.peft, *adapters_, total_steps);
  const std::int64_t last = allocator_->schedule().events.back().step;
  if (!checkpoint && last >= goal_step) {
    throw Error("PFT003", concat("pruning at step ", last, " cannot take effect: the run ends at step ", goal_step))
        .fix("prune earlier, or train longer (train.max_steps, train.epochs)");
  }
}

void Adaptation::protect(ParameterSet& parameters, const Value* saved) {
  if (!options_.ewc.enabled) return;
  std::vector<std::pair<std::string, at::Tensor>> direct;
  direct_.clear();
  for (std::size_t i = 0; i < parameters.tensors.size(); ++i) {
    const TrainableTensor& tensor = parameters.tensors[i];
    if (tensor.role || tensor.first_row > 0) continue;  // new rows are not what the Fisher file protects
    direct.emplace_back(tensor.name, tensor.value);
    direct_.push_back(static_cast<int>(i));
  }
  const bool weights_hold_effective = options_.peft.lora_dropout == 0;
  ewc_ = std::make_unique<Ewc>(options_.ewc, read_fisher(options_.ewc.fisher), std::move(direct), adapters_.get(),
                               weights_hold_effective);
  if (saved) ewc_->load_state(*saved);
  ewc_->check_anchors();
}

void Adaptation::begin_window(ParameterSet& parameters) {
  if (adapters_) parameters.zero_adapter_gradients();
  if (!ewc_) return;
  // The pull reaches every row of a table; the fused engine clears only those that a batch touched.
  const torch::NoGradGuard no_grad;
  for (const int i : direct_) parameters.tensors[static_cast<std::size_t>(i)].grad.zero_();
}

void Adaptation::complete_gradients(double scale) {
  if (ewc_) ewc_->add_gradient(scale);
  if (adapters_) adapters_->push_gradients();
  if (allocator_) allocator_->add_regulariser_gradient(scale);
}

void Adaptation::agree(Ranks& ranks) {
  if (ranks.single() || !ewc_ || options_.ewc.lambda) return;
  std::vector<double> chosen(2, 0.0);
  if (ranks.first()) chosen = {ewc_->lambda() ? 1.0 : 0.0, ewc_->lambda().value_or(0.0)};
  ranks.sum(chosen);
  ewc_->set_lambda(chosen[0] > 0 ? std::optional(chosen[1]) : std::nullopt);
}

std::optional<PruneResult> Adaptation::after_step(std::int64_t step, double factor, ParameterSet& parameters,
                                                  AdamW& optimizer, Ema* ema) {
  if (ewc_) {
    std::vector<double> rates;
    for (const int i : direct_) {
      const auto group = static_cast<std::size_t>(parameters.tensors[static_cast<std::size_t>(i)].group);
      rates.push_back(parameters.groups[group].learning_rate * factor);
    }
    ewc_->proximal_step(rates);
  }
  if (!allocator_) return std::nullopt;
  std::optional<PruneResult> pruned = allocator_->after_step(step);
  if (!pruned) return std::nullopt;
  if (!pruned->shrunk.empty()) {
    optimizer.keep(pruned->shrunk);
    if (ema) ema->keep(pruned->shrunk);
    parameters.renew_adapter_gradients();
  }
  for (std::size_t i = 0; ema && i < pruned->masks.size(); ++i) {
    ema->mask(adapters_->adapters()[i].parameter_name(AdapterRole::kLambda), pruned->masks[i]);
  }
  return pruned;
}

OrderedJson Adaptation::measure() const {
  OrderedJson line = OrderedJson::object();
  if (allocator_) line["orthogonality"] = allocator_->regulariser();
  if (!ewc_) return line;
  const EwcReport report = ewc_->measure();
  line["ewc_penalty"] = report.penalty;
  line["ewc_penalty_norm"] = report.penalty_norm;
  line["ewc_drift"] = report.drift;
  line["ewc_lambda"] = report.lambda ? OrderedJson(*report.lambda) : OrderedJson(nullptr);
  return line;
}

std::string Adaptation::describe() const {
  std::string text;
  if (adapters_) {
    text += adapters_->describe();
    std::size_t base = 0;
    for (const Adapter& adapter : adapters_->adapters()) base += adapter.base().nbytes();
    const std::size_t gradients = adapters_->gradient_bytes();
    text += concat("memory: ", human_bytes(base), " for W0 beside W'",
                   gradients > 0 ? concat(", ", human_bytes(gradients), " for dL/dW'") : "", "\n");
  }
  if (allocator_) {
    const PruneSchedule& schedule = allocator_->schedule();
    text += concat("pruning: ", schedule.initial_budget, " ", options_.peft.budget_unit, " at the start, ",
                   schedule.events.size(), " events, the last at step ", schedule.events.back().step, " leaves ",
                   schedule.events.back().budget,
                   options_.model.layers == 12 && options_.model.model_dim == 512
                       ? " (the plan expects ranks 8 to 32 and 1.5 to 2 M parameters)\n"
                       : "\n");
  }
  if (ewc_) {
    text += concat("EWC: ", ewc_->names().size(), " tensors protected, ", human_bytes(ewc_->bytes()),
                   " for Fisher information and anchors\n");
  }
  return text;
}

std::size_t Adaptation::bytes() const {
  std::size_t total = ewc_ ? ewc_->bytes() : 0;
  if (!adapters_) return total;
  for (const Adapter& adapter : adapters_->adapters()) total += adapter.base().nbytes();
  return total + adapters_->gradient_bytes();
}

void Adaptation::save_state(Value& ours, const ParameterSet& parameters) const {
  if (adapters_) ours.set("adapters", describe_adapters(*adapters_, parameters.beside_adapters()));
  if (allocator_) ours.set("allocator", allocator_->save_state());
  if (ewc_) ours.set("ewc", ewc_->save_state());
}

void Adaptation::load_state(const Value& root, ParameterSet& parameters) {
  const Value& ours = root.at("train_gpt_v2");
  if (adapters_) {
    adapters_->load_state(root.at("adapter"));
    parameters.renew_adapter_gradients();
  }
  if (allocator_) allocator_->load_state(ours.at("allocator"));
  if (const Value* ewc = ours.find("ewc"); ewc_ && ewc) ewc_->load_state(*ewc);
}

}  // namespace train_gpt_v2
