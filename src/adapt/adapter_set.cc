#include "train_gpt_v2/adapt/adapter_set.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "train_gpt_v2/config/patterns.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/tensor_bridge.h"

namespace train_gpt_v2 {
namespace {

template <typename Number>
const Number* first_match(const std::vector<std::pair<std::string, Number>>& patterns, const std::string& module) {
  for (const auto& [pattern, value] : patterns) {
    if (pattern_matches(pattern, module)) return &value;
  }
  return nullptr;
}

template <typename Number>
void require_matches(const std::vector<std::pair<std::string, Number>>& patterns, const std::vector<AdapterSpec>& specs,
                     std::string_view key) {
  for (const auto& entry : patterns) {
    const std::string& pattern = entry.first;
    const auto matches = [&pattern](const AdapterSpec& spec) { return pattern_matches(pattern, spec.module); };
    if (std::any_of(specs.begin(), specs.end(), matches)) continue;
    throw Error("PFT001", concat(key, ": \"", pattern, "\" matches none of the adapted modules"))
        .fix("correct the pattern, or add its modules to peft.target_modules");
  }
}

std::int64_t parameter_count(const AdapterSpec& spec, const AdapterTarget& target) {
  const bool transposed = spec.layout == WeightLayout::kInOut;
  const std::int64_t inputs = target.weight.size(transposed ? 0 : 1), outputs = target.weight.size(transposed ? 1 : 0);
  return spec.rank * (inputs + outputs + (is_adaptive(spec.kind) ? 1 : 0)) + (has_magnitude(spec.kind) ? outputs : 0);
}

const AdapterTarget& target_of(const std::vector<AdapterTarget>& targets, const std::string& module) {
  for (const AdapterTarget& target : targets) {
    if (target.module == module) return target;
  }
  throw Error("PFT002", concat("the model has no matrix ", module, " for an adapter"))
      .fix("use an adapter that was trained on this model");
}

// Lowers the ranks of conformer modules by one common factor, never below 1.
void limit_conformers(const PeftOptions& options, const std::vector<AdapterTarget>& targets,
                      std::vector<AdapterSpec>& specs) {
  std::vector<std::int64_t> asked;
  std::int64_t others = 0, largest = 0;
  for (const AdapterSpec& spec : specs) {
    asked.push_back(spec.rank);
    if (UnifiedVoice::is_conditioner(spec.module + ".weight")) {
      largest = std::max(largest, spec.rank);
    } else {
      others += parameter_count(spec, target_of(targets, spec.module));
    }
  }
  if (largest == 0 || others == 0) return;
  for (std::int64_t numerator = largest; numerator >= 1; --numerator) {
    std::int64_t conformers = 0;
    for (std::size_t i = 0; i < specs.size(); ++i) {
      if (!UnifiedVoice::is_conditioner(specs[i].module + ".weight")) continue;
      specs[i].rank = std::max<std::int64_t>(1, asked[i] * numerator / largest);
      conformers += parameter_count(specs[i], target_of(targets, specs[i].module));
    }
    if (static_cast<double>(conformers) <= options.conformer_budget_share * static_cast<double>(conformers + others)) {
      return;
    }
  }
  throw Error("PFT001", "conformer adapters exceed their share of the adapter parameters even at rank 1")
      .detail(concat("peft.conformer_budget_share is ", options.conformer_budget_share))
      .fix("raise the share, or target fewer conformer modules");
}

// "gpt.h.3.attn.c_attn" -> {"gpt.h.*.attn.c_attn", 3}; -1 where no segment is a number.
std::pair<std::string, int> kind_and_layer(const std::string& module) {
  std::vector<std::string> segments = split(module, '.');
  for (std::string& segment : segments) {
    if (segment.empty() || segment.size() > 4 || segment.find_first_not_of("0123456789") != std::string::npos) continue;
    const int layer = std::stoi(segment);
    segment = "*";
    return {join(segments, "."), layer};
  }
  return {module, -1};
}

}  // namespace

std::vector<AdapterTarget> adapter_targets(UnifiedVoice& model) {
  std::vector<AdapterTarget> targets;
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    if (const auto dense = std::dynamic_pointer_cast<Dense>(item.value())) {
      targets.push_back({item.key(), dense->weight, dense->layout, false});
    } else if (const auto lookup = std::dynamic_pointer_cast<Table>(item.value())) {
      targets.push_back({item.key(), lookup->weight, WeightLayout::kInOut, true});
    }
  }
  return targets;
}

std::vector<AdapterSpec> plan_adapters(const PeftOptions& options, const std::vector<AdapterTarget>& targets,
                                       bool online_conditioning) {
  const AdapterKind kind = parse_adapter_kind(options.method);
  if (options.use_rslora && is_adaptive(kind)) {
    throw Error("PFT001", "peft.use_rslora has no meaning with peft.method \"" + options.method + "\"")
        .fix("the scale of AdaLoRA is alpha / initial rank; set use_rslora to false");
  }
  std::vector<std::string> names;
  names.reserve(targets.size());
  for (const AdapterTarget& target : targets) names.push_back(target.module);
  const std::vector<bool> chosen = select_names(options.target_modules, names, "peft.target_modules");
  std::vector<AdapterSpec> specs;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    if (!chosen[i]) continue;
    const AdapterTarget& target = targets[i];
    if (!online_conditioning && UnifiedVoice::is_conditioner(target.module + ".weight")) {
      throw Error("PFT001",
                  concat("peft.target_modules names ", target.module, ", which precomputed conditioning skips"))
          .fix("set model.conditioning to \"online\", or leave the conformers out");
    }
    if (target.embedding && is_adaptive(kind)) {
      throw Error("PFT001", concat("peft.method \"", options.method, "\" cannot adapt the table ", target.module))
          .fix("use \"dora\" or \"lora\", or leave the table out of peft.target_modules");
    }
    const std::int64_t* rank = first_match(options.rank_pattern, target.module);
    specs.push_back({.module = target.module,
                     .kind = kind,
                     .layout = target.layout,
                     .embedding = target.embedding,
                     .rank = rank ? *rank : options.rank,
                     .rslora = options.use_rslora});
    const std::int64_t limit = std::min(target.weight.size(0), target.weight.size(1));
    if (specs.back().rank < 1 || specs.back().rank > limit) {
      throw Error("PFT001", concat("rank ", specs.back().rank, " of ", target.module, " is out of range"))
          .detail(concat("its matrix is ", target.weight.size(0), " x ", target.weight.size(1)))
          .fix(concat("choose a rank from 1 to ", limit));
    }
  }
  require_matches(options.rank_pattern, specs, "peft.rank_pattern");
  require_matches(options.alpha_pattern, specs, "peft.alpha_pattern");
  limit_conformers(options, targets, specs);
  for (AdapterSpec& spec : specs) {
    const double* alpha = first_match(options.alpha_pattern, spec.module);
    spec.alpha = alpha ? *alpha : options.lora_alpha.value_or(2.0 * static_cast<double>(spec.rank));
    if (!(spec.alpha > 0) || !std::isfinite(spec.alpha)) {
      throw Error("PFT001", concat("alpha ", spec.alpha, " of ", spec.module, " is not a positive number"))
          .fix("leave peft.lora_alpha out for twice the rank");
    }
  }
  return specs;
}

AdapterSet::AdapterSet(const std::vector<AdapterSpec>& specs, const std::vector<AdapterTarget>& targets) {
  TGV2_CHECK(!specs.empty());
  adapters_.reserve(specs.size());
  for (const AdapterSpec& spec : specs) {
    const AdapterTarget& target = target_of(targets, spec.module);
    TGV2_CHECK(target.layout == spec.layout && target.embedding == spec.embedding);
    adapters_.emplace_back(spec, target.weight);
    weights_.push_back(target.weight);
  }
  products_.resize(specs.size());
}

void AdapterSet::initialise(std::uint64_t seed) {
  for (Adapter& adapter : adapters_) adapter.initialise(seed);
}

const Adapter* AdapterSet::find(const std::string& module) const {
  for (const Adapter& adapter : adapters_) {
    if (adapter.spec().module == module) return &adapter;
  }
  return nullptr;
}

bool AdapterSet::adapts(const std::string& parameter) const {
  constexpr std::string_view kWeight = ".weight";
  return ends_with(parameter, kWeight) && find(parameter.substr(0, parameter.size() - kWeight.size()));
}

std::vector<AdapterParameter> AdapterSet::parameters() const {
  std::vector<AdapterParameter> all;
  for (const Adapter& adapter : adapters_) {
    for (AdapterParameter& parameter : adapter.parameters()) all.push_back(std::move(parameter));
  }
  return all;
}

std::int64_t AdapterSet::parameter_count() const {
  std::int64_t count = 0;
  for (const Adapter& adapter : adapters_) count += adapter.parameter_count();
  return count;
}

std::int64_t AdapterSet::rank_total() const {
  std::int64_t total = 0;
  for (const Adapter& adapter : adapters_) total += adapter.rank();
  return total;
}

void AdapterSet::apply() {
  for (std::size_t i = 0; i < adapters_.size(); ++i) {
    adapters_[i].refresh();
    adapters_[i].write_effective(weights_[i]);
    if (products_[i].with_a.defined() && products_[i].with_a.size(0) != adapters_[i].rank()) leave_products(i);
  }
}

void AdapterSet::use_base() {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < adapters_.size(); ++i) {
    adapters_[i].refresh();
    weights_[i].copy_(adapters_[i].base());
  }
}

void AdapterSet::leave_products(std::size_t i) {
  const Adapter& adapter = adapters_[i];
  const auto zeros = [&](at::IntArrayRef shape) { return at::zeros(shape, adapter.base().options()); };
  products_[i].with_a = zeros({adapter.rank(), adapter.outputs()});
  products_[i].with_b = zeros({adapter.rank(), adapter.inputs()});
  if (adapter.magnitude().defined()) products_[i].columns = zeros({adapter.outputs()});
  weights_[i].set_requires_grad(false).mutable_grad().reset();
}

std::size_t AdapterSet::gradient_bytes() const {
  std::size_t total = 0;
  const auto add = [&](const at::Tensor& tensor) { total += tensor.defined() ? tensor.nbytes() : 0; };
  for (std::size_t i = 0; i < adapters_.size(); ++i) {
    add(weights_[i].grad());
    for (const at::Tensor& tensor : {products_[i].with_a, products_[i].with_b, products_[i].columns}) add(tensor);
  }
  return total;
}

void AdapterSet::push_gradients() {
  for (std::size_t i = 0; i < adapters_.size(); ++i) {
    if (const GradientProducts& products = products_[i]; products.with_a.defined()) {
      adapters_[i].push_products(products);
      for (const at::Tensor& tensor : {products.with_a, products.with_b, products.columns}) {
        if (tensor.defined()) tensor.zero_();
      }
      continue;
    }
    const at::Tensor& gradient = weights_[i].grad();
    if (!gradient.defined()) continue;
    adapters_[i].push_gradient(gradient);
    gradient.detach().zero_();
  }
}

Value AdapterSet::save_state() const {
  Value state = Value::dict();
  for (const AdapterParameter& parameter : parameters()) {
    state.set(parameter.name, torch_to_tensor(parameter.tensor.detach().to(at::kCPU)));
  }
  return state;
}

void AdapterSet::load_state(const Value& state) {
  std::set<std::string> known;
  for (const AdapterParameter& parameter : parameters()) known.insert(parameter.name);
  for (const Value::Entry& entry : state.entries("adapter")) {
    const std::string& name = entry.key.as_string("a key of adapter");
    if (known.contains(name)) continue;
    throw Error("PFT002", concat("the checkpoint holds an adapter tensor that this configuration has not: ", name))
        .fix("continue with the peft section the checkpoint was trained with");
  }
  for (Adapter& adapter : adapters_) {
    const auto get = [&](AdapterRole role, bool wanted) {
      const std::string name = adapter.parameter_name(role);
      if (!wanted) return at::Tensor();
      const Value* found = state.find(name);
      if (found) return tensor_to_torch(found->as_tensor(name));
      throw Error("PFT002", concat("the checkpoint lacks the adapter tensor ", name))
          .fix("continue with the peft section the checkpoint was trained with");
    };
    const at::Tensor a = get(AdapterRole::kA, true);
    if (a.dim() != 2 || a.size(0) > adapter.spec().rank ||
        (!is_adaptive(adapter.spec().kind) && a.size(0) != adapter.spec().rank)) {
      throw Error("PFT002", concat("adapter tensor ", adapter.parameter_name(AdapterRole::kA), " has another rank"))
          .detail(concat("stored: ", shape_text(a.sizes()), ", configured rank: ", adapter.spec().rank))
          .fix("continue with the peft section the checkpoint was trained with");
    }
    adapter.set(a, get(AdapterRole::kB, true), get(AdapterRole::kLambda, adapter.lambda().defined()),
                get(AdapterRole::kMagnitude, adapter.magnitude().defined()));
  }
}

std::string AdapterSet::describe() const {
  struct Row {
    std::int64_t rank = 0, inputs = 0, outputs = 0, count = 0, parameters = 0;
  };
  std::vector<std::pair<std::string, Row>> kinds;
  std::set<int> layers;
  std::int64_t block_adapters = 0, block_weights = 0, weights = 0;
  for (const Adapter& adapter : adapters_) {
    const auto [kind, layer] = kind_and_layer(adapter.spec().module);
    const Row row{adapter.rank(), adapter.inputs(), adapter.outputs(), 0, 0};
    const auto same = [&, name = kind](const auto& known) {
      return known.first == name && known.second.rank == row.rank && known.second.inputs == row.inputs &&
             known.second.outputs == row.outputs;
    };
    auto found = std::find_if(kinds.begin(), kinds.end(), same);
    if (found == kinds.end()) found = kinds.insert(kinds.end(), {kind, row});
    ++found->second.count;
    found->second.parameters += adapter.parameter_count();
    weights += adapter.base().numel();
    if (!starts_with(kind, "gpt.h.*.")) continue;
    layers.insert(layer);
    block_adapters += adapter.parameter_count();
    block_weights += adapter.base().numel();
  }
  std::vector<std::vector<std::string>> rows{{"adapted matrix", "rank", "in", "out", "matrices", "parameters"}};
  for (const auto& [kind, row] : kinds) {
    rows.push_back({kind, std::to_string(row.rank), std::to_string(row.inputs), std::to_string(row.outputs),
                    std::to_string(row.count), human_count(static_cast<std::uint64_t>(row.parameters))});
  }
  std::string text = table(rows);
  if (!text.empty() && text.back() != '\n') text += '\n';
  text += concat(adapter_kind_name(kind()), ": ", human_count(static_cast<std::uint64_t>(parameter_count())),
                 " parameters in ", adapters_.size(), " matrices of ", human_count(static_cast<std::uint64_t>(weights)),
                 "\n");
  if (layers.empty()) return text;
  const auto per_layer = [&](std::int64_t total) {
    return static_cast<std::uint64_t>(total / static_cast<std::int64_t>(layers.size()));
  };
  return text + concat("per layer ", human_count(per_layer(block_adapters)), " of ",
                       human_count(per_layer(block_weights)), ", ",
                       fixed(static_cast<double>(block_weights) / static_cast<double>(block_adapters), 1),
                       "x fewer (plan: ~148k of ~2M, 13x)\n");
}

std::string AdapterSet::rank_chart(const std::vector<std::int64_t>& ranks) const {
  TGV2_CHECK(ranks.size() == adapters_.size());
  std::map<int, std::size_t> columns;
  for (const Adapter& adapter : adapters_) columns[kind_and_layer(adapter.spec().module).second] = 0;
  std::vector<std::string> heading{"rank"};
  for (auto& [layer, column] : columns) {
    column = heading.size();
    heading.push_back(layer < 0 ? "-" : std::to_string(layer));
  }
  std::vector<std::vector<std::string>> rows{heading};
  std::map<std::string, std::size_t> row_of;
  for (std::size_t i = 0; i < adapters_.size(); ++i) {
    const auto [kind, layer] = kind_and_layer(adapters_[i].spec().module);
    const auto [found, inserted] = row_of.try_emplace(kind, rows.size());
    if (inserted) {
      rows.emplace_back(heading.size());
      rows.back()[0] = kind;
    }
    rows[found->second][columns[layer]] = std::to_string(ranks[i]);
  }
  return table(rows);
}

}  // namespace train_gpt_v2
