#include "train_gpt_v2/adapt/peft_files.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <set>

#include "train_gpt_v2/config/json_text.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/safetensors.h"
#include "train_gpt_v2/model/tensor_bridge.h"

namespace train_gpt_v2 {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::size_t kMaxPattern = 512;
constexpr std::int64_t kMaxRank = 1 << 16;

// Settings that say where the adapter came from or how it was made, not what it computes.
constexpr auto kInformation = std::to_array<std::string_view>(
    {"auto_mapping",   "base_model_name_or_path", "inference_mode",  "peft_version",   "revision",
     "task_type",      "target_modules",          "exclude_modules", "layers_pattern", "layers_to_transform",
     "megatron_core",  "qalora_group_size",       "corda_config",    "eva_config",     "loftq_config",
     "runtime_config", "ensure_weight_tying",     "fan_in_fan_out",  "beta1",          "beta2",
     "deltaT",         "orth_reg_weight",         "target_r",        "tfinal",         "tinit",
     "total_step"});
constexpr auto kHonoured =
    std::to_array<std::string_view>({"peft_type", "r", "init_r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora",
                                     "rank_pattern", "alpha_pattern", "modules_to_save", "init_lora_weights"});

template <std::size_t N>
bool contains(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_empty(const Json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         ((value.is_object() || value.is_array()) && value.empty()) || value == "none";
}

class Config {
 public:
  explicit Config(std::string path) : path_(std::move(path)) {
    const std::string text = read_file(path_, kMaxConfigBytes);
    try {
      json_ = parse_json_text(text, path_).value;
    } catch (const Error& error) {
      throw refuse(error.message());
    }
    if (!json_.is_object()) throw refuse("it is not a JSON object");
    const std::string type = string("peft_type", "");
    if (type != "LORA" && type != "ADALORA") throw refuse(concat("peft_type \"", type, "\" is not LORA or ADALORA"));
    for (const auto& [key, value] : json_.items()) {
      if (contains(kInformation, key) || contains(kHonoured, key) || is_empty(value)) continue;
      throw refuse(concat("the setting \"", key, "\" = ", value.dump().substr(0, 80), " is not supported"));
    }
    const Json& start = member("init_lora_weights");
    if (!start.is_null() && !start.is_boolean() && start != "gaussian") {
      throw refuse(concat("init_lora_weights ", start.dump().substr(0, 80), " changes the base weights"));
    }
  }

  Error refuse(const std::string& problem) const {
    return Error("PFT002", "the adapter configuration cannot be used: " + problem).where(path_);
  }
  const Json& member(const std::string& key) const {
    static const Json kNull;
    const auto found = json_.find(key);
    return found == json_.end() ? kNull : *found;
  }
  bool adalora() const { return member("peft_type") == "ADALORA"; }
  bool flag(const std::string& key) const {
    const Json& value = member(key);
    if (!value.is_null() && !value.is_boolean()) throw refuse(concat("\"", key, "\" is not true or false"));
    return value.is_boolean() && value.get<bool>();
  }
  double number(const std::string& key, double missing) const {
    return member(key).is_null() ? missing : finite(member(key), key);
  }
  std::string string(const std::string& key, const std::string& missing) const {
    const Json& value = member(key);
    return value.is_string() ? value.get<std::string>() : missing;
  }
  std::int64_t rank(const Json& value, const std::string& key) const {
    if (!value.is_number_integer() || value < 1 || value > kMaxRank) {
      throw refuse(concat("\"", key, "\" is not a rank: ", value.dump().substr(0, 80)));
    }
    return value.get<std::int64_t>();
  }
  double finite(const Json& value, const std::string& key) const {
    if (!value.is_number() || !std::isfinite(value.get<double>())) {
      throw refuse(concat("\"", key, "\" is not a number: ", value.dump().substr(0, 80)));
    }
    return value.get<double>();
  }
  // The value of the first pattern that matches the module, as peft looks it up; null for none.
  const Json& by_pattern(const std::string& key, const std::string& module) const {
    const Json& patterns = member(key);
    if (!patterns.is_null() && !patterns.is_object()) throw refuse(concat("\"", key, "\" is not an object"));
    for (const auto& [pattern, value] : patterns.items()) {
      if (matches(pattern, module, key)) return value;
    }
    return member("");
  }
  std::vector<std::string> names(const std::string& key) const {
    std::vector<std::string> list;
    const Json& value = member(key);
    if (!value.is_null() && !value.is_array()) throw refuse(concat("\"", key, "\" is not a list"));
    for (const Json& item : value) {
      if (!item.is_string()) throw refuse(concat("\"", key, "\" holds something else than names"));
      list.push_back(item.get<std::string>());
    }
    return list;
  }
  const std::string& path() const { return path_; }

 private:
  bool matches(const std::string& pattern, const std::string& module, const std::string& key) const {
    if (pattern.size() > kMaxPattern) throw refuse(concat("a pattern in \"", key, "\" is too long"));
    try {
      // The file is not ours: matching time must not explode, hence the matcher without backtracking.
      const auto flags = std::regex::ECMAScript | std::regex_constants::__polynomial;
      return std::regex_match(module, std::regex("(.*\\.)?(" + pattern + ")", flags));
    } catch (const std::regex_error&) {
      throw refuse(concat("\"", key, "\" holds a pattern that cannot be read: \"", pattern, "\""));
    }
  }

  std::string path_;
  Json json_;
};

enum class Part { kA, kB, kLambda, kMagnitude, kSaved };

struct Key {
  std::string module;  // for kSaved the whole parameter name
  Part part = Part::kSaved;
  bool embedding = false;
};

// A tensor name of either spelling, taken apart.
Key parse_key(std::string_view name) {
  if (starts_with(name, kPrefix)) name.remove_prefix(kPrefix.size());
  std::vector<std::string> segments;
  bool saved = false;
  for (std::string& segment : split(name, '.')) {
    if (segment == "modules_to_save") saved = true;
    if (segment != "default" && segment != "modules_to_save") segments.push_back(std::move(segment));
  }
  std::vector<std::string> module = segments;
  if (!saved && module.size() > 1 && module.back() == "weight") module.pop_back();
  static const std::map<std::string, std::pair<Part, bool>> kParts = {
      {"lora_A", {Part::kA, false}},          {"lora_B", {Part::kB, false}},
      {"lora_E", {Part::kLambda, false}},     {"lora_magnitude_vector", {Part::kMagnitude, false}},
      {"lora_embedding_A", {Part::kA, true}}, {"lora_embedding_B", {Part::kB, true}}};
  const auto part = kParts.find(module.back());
  if (saved || module.size() < 2 || part == kParts.end()) return {join(segments, "."), Part::kSaved, false};
  module.pop_back();
  return {join(module, "."), part->second.first, part->second.second};
}

bool named_in(const std::vector<std::string>& modules, const std::string& parameter) {
  return std::any_of(modules.begin(), modules.end(), [&](const std::string& module) {
    const std::string inner = "." + module + ".";
    return starts_with(parameter, module + ".") || parameter.find(inner) != std::string::npos;
  });
}

Error refuse_module(const Config& config, const std::string& module, const std::string& problem) {
  return Error("PFT002", concat("the adapter of ", module, ": ", problem)).where(config.path());
}

// Rank, alpha and completeness of one module against the configuration.
void check_module(const Config& config, AdapterKind kind, PeftModule& module) {
  if (!module.a.data && module.a.shape.empty()) throw refuse_module(config, module.module, "lora_A is missing");
  if (!module.b.data && module.b.shape.empty()) throw refuse_module(config, module.module, "lora_B is missing");
  const bool magnitude = !module.magnitude.shape.empty();
  if (has_magnitude(kind) && !magnitude) {
    throw refuse_module(config, module.module, "use_dora is set, but its magnitude is missing")
        .fix("export the adapter again: without its magnitudes it is another model");
  }
  if (!has_magnitude(kind) && magnitude) {
    throw refuse_module(config, module.module, "it has a magnitude, but use_dora is not set")
        .fix("set use_dora if it was trained as DoRA");
  }
  if (is_adaptive(kind) == module.lambda.shape.empty()) {
    throw refuse_module(config, module.module, "lora_E does not agree with peft_type");
  }
  if (module.a.shape.size() != 2) throw refuse_module(config, module.module, "lora_A is not a matrix");
  std::int64_t rows = 0;
  if (config.adalora()) {
    module.rank = config.rank(config.member("init_r"), "init_r");
    module.alpha = config.number("lora_alpha", 8);
    rows = module.rank;
    const Json& pattern = config.member("rank_pattern");
    const auto found = pattern.is_object() ? pattern.find(module.module + ".lora_E") : pattern.end();
    if (found != pattern.end()) {
      if (!found->is_array() || static_cast<std::int64_t>(found->size()) != module.rank) {
        throw refuse_module(config, module.module, "its rank_pattern is not a list of init_r booleans");
      }
      rows = std::count(found->begin(), found->end(), Json(true));
    }
  } else {
    const Json& rank = config.by_pattern("rank_pattern", module.module);
    module.rank = rank.is_null() ? config.rank(config.member("r"), "r") : config.rank(rank, "rank_pattern");
    const Json& alpha = config.by_pattern("alpha_pattern", module.module);
    module.alpha = alpha.is_null() ? config.number("lora_alpha", 8) : config.finite(alpha, "alpha_pattern");
    rows = module.rank;
  }
  if (module.a.shape[0] != rows) {
    throw refuse_module(config, module.module, "its tensors have another rank than the configuration says")
        .detail(concat("tensors: ", module.a.shape[0], ", configuration: ", rows));
  }
}

std::string escape_regex(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (std::string_view(".^$|()[]{}*+?\\").find(c) != std::string_view::npos) escaped += '\\';
    escaped += c;
  }
  return escaped;
}

// "gpt.h.3.mlp.c_fc" -> "mlp.c_fc": what modules of all layers have in common.
std::string tail_of(const std::string& module) {
  const std::vector<std::string> segments = split(module, '.');
  for (std::size_t i = segments.size(); i-- > 0;) {
    if (!segments[i].empty() && segments[i].find_first_not_of("0123456789") == std::string::npos) {
      return join({segments.begin() + static_cast<std::ptrdiff_t>(i) + 1, segments.end()}, ".");
    }
  }
  return module;
}

// Patterns for every module whose value is not the default; one for all layers where they agree.
Json patterns_for(const std::vector<std::pair<std::string, double>>& values, double usual) {
  Json patterns = Json::object();
  const auto json_number = [](double value) {
    return value == std::floor(value) && std::abs(value) < 1e15 ? Json(static_cast<std::int64_t>(value)) : Json(value);
  };
  for (const auto& [module, value] : values) {
    const std::string tail = tail_of(module);
    const bool shared = std::all_of(values.begin(), values.end(), [&, wanted = value](const auto& other) {
      const bool same_tail = other.first == tail || ends_with(other.first, "." + tail);
      return !same_tail || other.second == wanted;
    });
    if (value == usual) continue;
    patterns[shared ? escape_regex(tail) : "^" + escape_regex(module)] = json_number(value);
  }
  return patterns;
}

Json config_for(const AdapterSet& set, double dropout, const std::set<std::string>& modules_to_save) {
  std::vector<std::pair<std::string, double>> ranks, alphas;
  std::vector<std::string> modules;
  bool conv = false;
  for (const Adapter& adapter : set.adapters()) {
    const AdapterSpec& spec = adapter.spec();
    const double rank = static_cast<double>(std::max<std::int64_t>(1, adapter.rank()));
    ranks.emplace_back(spec.module, rank);
    alphas.emplace_back(spec.module, is_adaptive(spec.kind) ? 2 * rank : spec.alpha);
    modules.push_back(spec.module);
    conv = conv || (spec.layout == WeightLayout::kInOut && !spec.embedding);
  }
  const AdapterSpec& first = set.adapters().front().spec();
  const double usual_alpha = alphas.front().second;
  Json config = Json::object();
  config["peft_type"] = "LORA";
  config["auto_mapping"] = nullptr;
  config["base_model_name_or_path"] = nullptr;
  config["revision"] = nullptr;
  config["task_type"] = nullptr;
  config["inference_mode"] = true;
  config["r"] = static_cast<std::int64_t>(ranks.front().second);
  config["lora_alpha"] =
      usual_alpha == std::floor(usual_alpha) ? Json(static_cast<std::int64_t>(usual_alpha)) : Json(usual_alpha);
  config["lora_dropout"] = dropout;
  config["target_modules"] = modules;
  config["use_dora"] = has_magnitude(first.kind);
  config["use_rslora"] = first.rslora;
  config["fan_in_fan_out"] = conv;
  config["bias"] = "none";
  config["rank_pattern"] = patterns_for(ranks, ranks.front().second);
  config["alpha_pattern"] = patterns_for(alphas, usual_alpha);
  config["modules_to_save"] = modules_to_save.empty() ? Json(nullptr) : Json(modules_to_save);
  config["init_lora_weights"] = true;
  config["peft_version"] = "0.18.1";
  return config;
}

}  // namespace

PeftFolder read_peft_folder(const std::string& folder) {
  const Config config(path_join(folder, "adapter_config.json"));
  const std::string weights = path_join(folder, "adapter_model.safetensors");
  PeftFolder result;
  result.rslora = config.flag("use_rslora");
  result.dropout = config.number("lora_dropout", 0);
  if (!(result.dropout >= 0 && result.dropout < 1)) throw config.refuse("lora_dropout is not within [0, 1)");
  const bool dora = config.flag("use_dora");
  if (config.adalora() && (dora || result.rslora)) throw config.refuse("ADALORA with use_dora or use_rslora");
  result.kind = config.adalora() ? AdapterKind::kAdalora : dora ? AdapterKind::kDora : AdapterKind::kLora;
  const std::vector<std::string> saved = config.names("modules_to_save");
  std::map<std::string, PeftModule> modules;
  for (const auto& [name, tensor] : read_safetensors(weights).tensors) {
    const Key key = parse_key(name);
    if (key.part == Part::kSaved) {
      if (!named_in(saved, key.module)) {
        throw Error("PFT002", concat("the adapter file holds a tensor that would be dropped: ", name))
            .where(weights)
            .fix("list its module in modules_to_save, or export the adapter again");
      }
      result.saved.emplace_back(key.module, tensor);
      continue;
    }
    PeftModule& module = modules[key.module];
    module.module = key.module;
    module.embedding = module.embedding || key.embedding;
    Tensor& place = key.part == Part::kA        ? module.a
                    : key.part == Part::kB      ? module.b
                    : key.part == Part::kLambda ? module.lambda
                                                : module.magnitude;
    if (place.data || !place.shape.empty()) throw refuse_module(config, key.module, concat(name, " appears twice"));
    if (!is_floating_point(tensor.dtype) || tensor.shape.empty()) {
      throw refuse_module(config, key.module, concat(name, " is not a floating-point matrix or vector"));
    }
    place = tensor;
  }
  for (auto& [name, module] : modules) {
    check_module(config, result.kind, module);
    result.modules.push_back(std::move(module));
  }
  if (result.modules.empty()) throw Error("PFT002", "the adapter file holds no adapter").where(weights);
  return result;
}

AdapterSet make_adapter_set(const PeftFolder& folder, const std::vector<AdapterTarget>& targets) {
  std::vector<AdapterSpec> specs;
  std::vector<const PeftModule*> modules;
  // In the order of the model, so that parameters() does not depend on where the adapter came from.
  for (const AdapterTarget& target : targets) {
    for (const PeftModule& module : folder.modules) {
      if (module.module != target.module) continue;
      if (module.embedding != target.embedding) {
        throw Error("PFT002", concat("the adapter of ", module.module, " is for another kind of module"))
            .fix("use an adapter that was trained on this model");
      }
      specs.push_back(
          {target.module, folder.kind, target.layout, target.embedding, module.rank, module.alpha, folder.rslora});
      modules.push_back(&module);
    }
  }
  for (const PeftModule& module : folder.modules) {
    if (std::find(modules.begin(), modules.end(), &module) != modules.end()) continue;
    throw Error("PFT002", concat("the model has no matrix ", module.module, " for an adapter"))
        .fix("use an adapter that was trained on this model");
  }
  AdapterSet set(specs, targets);
  const auto torch_or_none = [](const Tensor& tensor) {
    return tensor.shape.empty() ? at::Tensor() : tensor_to_torch(tensor);
  };
  for (std::size_t i = 0; i < modules.size(); ++i) {
    set.adapters()[i].set(torch_or_none(modules[i]->a), torch_or_none(modules[i]->b), torch_or_none(modules[i]->lambda),
                          torch_or_none(modules[i]->magnitude));
  }
  return set;
}

void write_peft_folder(const std::string& folder, const AdapterSet& set, double dropout,
                       const std::vector<std::pair<std::string, at::Tensor>>& beside) {
  SafetensorsFile file;
  file.metadata = {{"format", "pt"}};
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    const at::Tensor host = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
    file.tensors.emplace_back(concat(kPrefix, name), torch_to_tensor(host));
  };
  for (const Adapter& adapter : set.adapters()) {
    const auto [a, b] = adapter.plain_factors();
    const std::string& module = adapter.spec().module;
    const bool embedding = adapter.spec().embedding;
    add(module + (embedding ? ".lora_embedding_A" : ".lora_A.weight"), a);
    add(module + (embedding ? ".lora_embedding_B" : ".lora_B.weight"), b);
    if (adapter.magnitude().defined()) add(module + ".lora_magnitude_vector", adapter.magnitude());
  }
  std::set<std::string> modules_to_save;
  for (const auto& [name, tensor] : beside) {
    const std::string module = name.substr(0, name.rfind('.'));
    if (set.find(module)) {
      throw Error("PFT001", concat("peft cannot store ", name, ": its module has an adapter"))
          .fix("merge instead, or freeze this tensor");
    }
    modules_to_save.insert(module);
    add(name, tensor);
  }
  std::sort(file.tensors.begin(), file.tensors.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  make_directories(folder);
  write_safetensors(path_join(folder, "adapter_model.safetensors"), file);
  write_file_atomically(path_join(folder, "adapter_config.json"),
                        config_for(set, dropout, modules_to_save).dump(2) + "\n");
}

}  // namespace train_gpt_v2
