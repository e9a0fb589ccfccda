#include "train_gpt_v2/train/adapter_checkpoint.h"

#include <ATen/core/grad_mode.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "train_gpt_v2/adapt/peft_files.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/tensor_bridge.h"
#include "train_gpt_v2/model/weights.h"

namespace train_gpt_v2 {
namespace {

constexpr const char* kPlace = "train_gpt_v2.adapters";

Error damaged(const std::string& what) {
  return Error("CKP007", "the description of a checkpoint's adapters cannot be used").at(kPlace).detail(what);
}

nlohmann::json stored_description(const Value& root) {
  const std::string& text = root.at("train_gpt_v2").at("adapters").as_string(kPlace);
  nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("modules") || !json["modules"].is_array() || json["modules"].empty() ||
      !json.contains("beside") || !json["beside"].is_array()) {
    throw damaged("\"modules\" and \"beside\" are needed");
  }
  return json;
}

// The dict of one module's averages, or its stored values where an average is missing (it was not trained then).
Value averaged_values(const Value& values, const Value& shadows) {
  Value result = Value::dict();
  for (const Value::Entry& entry : values.entries("adapter")) {
    const Value* average = shadows.find(entry.key.as_string("a key of adapter"));
    result.set(entry.key, average ? *average : entry.value);
  }
  return result;
}

}  // namespace

bool is_adapter_checkpoint(const Value& root) {
  return root.is_dict() && root.contains("base_model") && root.contains("adapter");
}

std::string describe_adapters(const AdapterSet& set, const std::vector<std::string>& beside) {
  nlohmann::ordered_json modules = nlohmann::ordered_json::array();
  for (const Adapter& adapter : set.adapters()) {
    const AdapterSpec& spec = adapter.spec();
    modules.push_back({{"module", spec.module},
                       {"method", std::string(adapter_kind_name(spec.kind))},
                       {"rank", spec.rank},
                       {"alpha", spec.alpha},
                       {"rslora", spec.rslora}});
  }
  return nlohmann::ordered_json{{"modules", modules}, {"beside", beside}}.dump();
}

std::vector<AdapterSpec> stored_adapter_specs(const Value& root, const std::vector<AdapterTarget>& targets) {
  std::map<std::string, const AdapterTarget*> known;
  for (const AdapterTarget& target : targets) known[target.module] = &target;
  std::vector<AdapterSpec> specs;
  std::set<std::string> seen;
  const nlohmann::json description = stored_description(root);
  for (const nlohmann::json& one : description["modules"]) {
    AdapterSpec spec;
    try {
      spec.module = one.at("module").get<std::string>();
      spec.kind = parse_adapter_kind(one.at("method").get<std::string>());
      spec.rank = one.at("rank").get<std::int64_t>();
      spec.alpha = one.at("alpha").get<double>();
      spec.rslora = one.at("rslora").get<bool>();
    } catch (const nlohmann::json::exception& failure) {
      throw damaged(failure.what());
    }
    const auto target = known.find(spec.module);
    if (target == known.end()) throw damaged("the model has no matrix " + spec.module);
    const at::Tensor& weight = target->second->weight;
    if (spec.rank < 1 || spec.rank > std::min(weight.size(0), weight.size(1)) || !(spec.alpha > 0)) {
      throw damaged(concat("rank ", spec.rank, " and alpha ", spec.alpha, " of ", spec.module));
    }
    if (!seen.insert(spec.module).second) throw damaged(spec.module + " appears twice");
    if (!specs.empty() && specs.front().kind != spec.kind) throw damaged("adapters of different methods");
    spec.layout = target->second->layout;
    spec.embedding = target->second->embedding;
    specs.push_back(std::move(spec));
  }
  return specs;
}

std::vector<std::string> stored_beside(const Value& root) {
  std::vector<std::string> names;
  const nlohmann::json description = stored_description(root);
  for (const nlohmann::json& name : description["beside"]) {
    if (!name.is_string()) throw damaged("\"beside\" is not a list of names");
    names.push_back(name.get<std::string>());
  }
  return names;
}

void load_base_model(UnifiedVoice& model, const Value& root, const std::string& source) {
  LoadOptions how;
  how.source = source;
  how.complete = true;
  load_state(model, root.at("base_model"), how);
}

std::unique_ptr<AdapterSet> load_adapted_model(UnifiedVoice& model, const Value& root, bool averaged,
                                               const std::string& source) {
  load_base_model(model, root, source);
  const std::vector<AdapterTarget> targets = adapter_targets(model);
  auto set = std::make_unique<AdapterSet>(stored_adapter_specs(root, targets), targets);
  if (averaged) {
    const Value& shadows = root.at("ema_state");
    set->load_state(averaged_values(root.at("adapter"), shadows));
    apply_averages(model, shadows, source);
  } else {
    set->load_state(root.at("adapter"));
  }
  set->apply();
  return set;
}

std::unique_ptr<AdapterSet> apply_peft_folder(UnifiedVoice& model, const std::string& folder) {
  const at::NoGradGuard no_grad;
  const PeftFolder contents = read_peft_folder(folder);
  std::map<std::string, at::Tensor> parameters;
  for (const StateEntry& entry : model.state()) parameters[entry.name] = entry.tensor;
  for (const auto& [name, tensor] : contents.saved) {
    const auto found = parameters.find(name);
    const at::Tensor value = tensor_to_torch(tensor);
    if (found == parameters.end() || found->second.sizes() != value.sizes()) {
      throw Error("PFT002", concat("a module saved beside the adapter does not fit the model: ", name))
          .where(folder)
          .detail(concat("stored ", shape_text(value.sizes()), ", model ",
                         found == parameters.end() ? "has none" : shape_text(found->second.sizes())))
          .fix("use an adapter that was trained on this model");
    }
    found->second.copy_(value);
  }
  auto set = std::make_unique<AdapterSet>(make_adapter_set(contents, adapter_targets(model)));
  set->apply();
  log_info("adapters", folder, ": ", adapter_kind_name(contents.kind), " on ", contents.modules.size(), " matrices",
           contents.saved.empty() ? "" : concat(", ", contents.saved.size(), " tensors saved beside them"));
  return set;
}

void apply_averages(UnifiedVoice& model, const Value& shadows, const std::string& source) {
  const at::NoGradGuard no_grad;
  for (const StateEntry& entry : model.state()) {
    const Value* saved = shadows.find(entry.name);
    if (!saved) continue;
    const at::Tensor average = tensor_to_torch(saved->as_tensor(entry.name));
    at::Tensor target = entry.tensor;
    if (average.dim() == target.dim() && average.dim() > 0 && average.size(0) < target.size(0)) {
      target = target.narrow(0, target.size(0) - average.size(0), average.size(0));
    }
    if (average.sizes() != target.sizes()) {
      throw Error("CKP005", "the EMA state does not fit the model").where(source).at(entry.name);
    }
    target.copy_(average);
  }
}

}  // namespace train_gpt_v2
