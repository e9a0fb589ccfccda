#include "train_gpt_v2/model/weights.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>
#include <set>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/tensor_bridge.h"

namespace train_gpt_v2 {
namespace {

using Found = std::map<std::string, const Tensor*>;

constexpr std::size_t kShown = 12;  // names listed in a message

std::string some(const std::vector<std::string>& names) {
  const std::size_t shown = std::min(kShown, names.size());
  std::string text = join({names.begin(), names.begin() + static_cast<std::ptrdiff_t>(shown)}, ", ");
  return names.size() > shown ? concat(text, " and ", names.size() - shown, " more") : text;
}

bool is_text_rows(const std::string& name) {
  return name == "text_embedding.weight" || name == "text_head.weight" || name == "text_head.bias";
}

// gpt.h.<i>.attn.bias and gpt.h.<i>.attn.masked_bias: causal masks that old libraries stored.
bool is_stored_mask(const std::string& name) {
  if (!starts_with(name, "gpt.h.")) return false;
  const std::size_t end = name.find('.', 6);
  return end != std::string::npos && (name.substr(end) == ".attn.bias" || name.substr(end) == ".attn.masked_bias");
}

bool is_alias(const std::string& name) {
  return starts_with(name, "inference_model.") || name == "gpt.wte.weight" || name == "gpt.wpe.weight" ||
         is_stored_mask(name);
}

void refuse_other_architectures(const Value& dict, const LoadOptions& options) {
  for (const Value::Entry& entry : dict.entries()) {
    if (!entry.key.is_string()) continue;
    const std::string& name = entry.key.as_string();
    if (!starts_with(name, "spk_emb_proj.") && !starts_with(name, "lang_embedding.")) continue;
    throw Error("CKP021", "these are the weights of IndexTTS-2.5, another network")
        .where(options.source)
        .detail(concat("it holds ", name, ", which UnifiedVoice of IndexTTS2 does not have"))
        .fix("use the gpt.pth of IndexTTS-2");
  }
}

// Adapter deltas beside their base layer are dropped as the Python trainer does; alone they are no model.
void refuse_lone_adapters(const Value& dict, const LoadOptions& options) {
  std::set<std::string> modules, adapted;
  for (const Value::Entry& entry : dict.entries()) {
    if (!entry.key.is_string()) continue;
    const std::string& name = entry.key.as_string();
    const std::size_t lora = name.find(".lora_");
    if (lora != std::string::npos) {
      adapted.insert(name.substr(0, lora));
    } else {
      const std::size_t base = name.find(".base_layer.");
      modules.insert(name.substr(0, base != std::string::npos ? base : name.rfind('.')));
    }
  }
  for (const std::string& module : adapted) {
    if (modules.contains(module)) continue;
    throw Error("CKP022", "the file holds adapters without the weights they change")
        .where(options.source)
        .detail(concat("deltas of ", module, ", but no weights of it"))
        .fix("give the base model as init.from and this adapter's folder as init.peft_adapter");
  }
}

Found collect_tensors(const Value& dict, const LoadOptions& options, LoadReport& report) {
  Found found;
  for (const Value::Entry& entry : dict.entries()) {
    if (!entry.key.is_string()) continue;
    std::string name = entry.key.as_string();
    if (!entry.value.is_tensor()) {
      report.unexpected.push_back(name);
      continue;
    }
    if (is_alias(name) || name.find(".lora_") != std::string::npos) {
      report.dropped.push_back(name);
      continue;
    }
    if (const std::size_t at = name.find(".base_layer."); at != std::string::npos) {
      report.renamed.push_back(name);
      name.replace(at, std::string_view(".base_layer.").size(), ".");
    }
    if (!found.emplace(name, &entry.value.as_tensor()).second) {
      throw Error("CKP020", concat("the file holds ", name, " twice, plain and as base layer of an adapter"))
          .where(options.source)
          .fix("merge the adapter with the tool that made it, then load the merged file");
    }
  }
  return found;
}

bool shapes_fit(const StateEntry& entry, const Tensor& tensor, bool exact) {
  const at::IntArrayRef wanted = entry.tensor.sizes();
  if (tensor.shape.size() != wanted.size()) return false;
  const std::size_t first = !exact && is_text_rows(entry.name) ? 1 : 0;
  if (first == 1 && tensor.shape[0] < 2) return false;
  return std::equal(tensor.shape.begin() + static_cast<std::ptrdiff_t>(first), tensor.shape.end(),
                    wanted.begin() + first);
}

// Another number of text rows than the model's makes sense only for table, head and bias together.
void check_text_rows(const std::vector<StateEntry>& state, const Found& found, const LoadOptions& options) {
  std::set<std::int64_t> rows;
  std::vector<std::string> text;
  std::int64_t wanted = 0;
  for (const StateEntry& entry : state) {
    if (!is_text_rows(entry.name)) continue;
    const auto tensor = found.find(entry.name);
    wanted = entry.tensor.size(0);
    rows.insert(tensor == found.end() ? wanted : tensor->second->shape[0]);
    text.push_back(concat(entry.name, ": ", tensor == found.end() ? "not there" : shape_text(tensor->second->shape)));
  }
  if (rows.size() == 1) return;
  throw Error("CKP020", "text table, head and bias have different numbers of rows")
      .where(options.source)
      .detail(join(text, ", "))
      .detail(concat("the model has ", wanted))
      .fix("use a complete state dict; these three belong together");
}

// Everything is compared before anything is copied.
void compare(const std::vector<StateEntry>& state, const Found& found, const LoadOptions& options, LoadReport& report) {
  std::vector<std::string> wrong, lost;
  std::set<std::string> known;
  for (const StateEntry& entry : state) {
    known.insert(entry.name);
    const auto tensor = found.find(entry.name);
    if (tensor == found.end()) {
      if (!entry.buffer) lost.push_back(entry.name);  // position tables follow from a formula
      continue;
    }
    if (!shapes_fit(entry, *tensor->second, options.complete) || !is_floating_point(tensor->second->dtype)) {
      wrong.push_back(concat(entry.name, ": file ", dtype_name(tensor->second->dtype), " ",
                             shape_text(tensor->second->shape), ", model ", shape_text(entry.tensor.sizes())));
    }
  }
  for (const auto& [name, tensor] : found) {
    if (!known.contains(name)) report.unexpected.push_back(name);
  }
  if (!wrong.empty()) {
    auto error = Error("CKP020", concat(wrong.size(), " tensors of the file do not fit the configured model"));
    for (std::size_t i = 0; i < std::min(kShown, wrong.size()); ++i) std::move(error).detail(wrong[i]);
    throw std::move(error)
        .where(options.source)
        .fix("make the model section of the configuration equal to the model that the file holds");
  }
  const bool none = lost.size() + 2 >= state.size();
  if (none || (options.complete && !lost.empty())) {
    throw Error("CKP023", none ? "the file holds no tensor of this model"
                               : concat("the file lacks ", lost.size(), " tensors of the model"))
        .where(options.source)
        .detail("missing: " + some(lost))
        .detail(report.unexpected.empty() ? "nothing else is in it" : "it holds: " + some(report.unexpected))
        .fix("use a complete state dict, as torch.save(model.state_dict()) writes it");
  }
  check_text_rows(state, found, options);
  report.missing = std::move(lost);
}

// The text rows of all three tensors together, where their number differs from the model's.
void load_text_rows(const std::map<std::string, at::Tensor>& model, const Found& found, const LoadOptions& options,
                    LoadReport& report) {
  const auto file = [&](const char* name) { return tensor_to_torch(*found.at(name)); };
  const VocabularyRows base{file("text_embedding.weight"), file("text_head.weight"), file("text_head.bias")};
  const VocabularyRows rows{model.at("text_embedding.weight"), model.at("text_head.weight"),
                            model.at("text_head.bias")};
  if (base.table.size(0) < rows.table.size(0)) {
    // On the host, because new rows are made there; then back in one copy.
    const VocabularyRows host{rows.table.to(at::kCPU), rows.head_weight.to(at::kCPU), rows.head_bias.to(at::kCPU)};
    report.vocabulary = open_vocabulary(base, host, options.new_rows, options.vocabulary, options.seed);
    rows.table.copy_(host.table);
    rows.head_weight.copy_(host.head_weight);
    rows.head_bias.copy_(host.head_bias);
    return;
  }
  const std::int64_t kept = rows.table.size(0);
  rows.table.copy_(base.table.slice(0, 0, kept));
  rows.head_weight.copy_(base.head_weight.slice(0, 0, kept));
  rows.head_bias.copy_(base.head_bias.slice(0, 0, kept));
}

}  // namespace

bool is_fisher_file(const Value& root) {
  const Value* metadata = root.find("__metadata__");
  const Value* format = metadata ? metadata->find("format") : nullptr;
  return format && format->is_string() && starts_with(format->as_string(), "train_gpt_v2 fisher ");
}

void refuse_fisher_file(const Value& root, const std::string& source) {
  if (!is_fisher_file(root)) return;
  throw Error("CKP002", "this is a Fisher file: it has a model's names and shapes, but no weights")
      .where(source)
      .fix("name it in ewc.fisher, and give a checkpoint here");
}

const Value& find_model_dict(const Value& root, const std::string& source) {
  if (root.is_dict() && root.contains("base_model") && root.contains("adapter")) {
    throw Error("CKP022", "this checkpoint holds a base model and adapters that are not merged into it")
        .where(source)
        .fix("train_gpt_v2 merge --checkpoint FILE --output merged_final.pth, then use that file");
  }
  refuse_fisher_file(root, source);
  const Value* inner = root.find("model");
  if (!inner && root.is_dict() && root.contains("adapter")) {
    throw Error("CKP022", "this checkpoint holds adapters without the weights they change")
        .where(source)
        .fix("merge them into their base with the tool that made them, then use that file");
  }
  const Value& dict = inner && inner->is_dict() ? *inner : root;
  if (!dict.is_dict()) {
    throw Error("CKP003", concat("a dict of tensors was expected, the file holds a ", dict.kind_name()))
        .where(source)
        .fix("save model.state_dict(), or a dict that holds it under \"model\"");
  }
  return dict;
}

LoadReport load_state(UnifiedVoice& model, const Value& root, const LoadOptions& options) {
  const Value& dict = find_model_dict(root, options.source);
  refuse_other_architectures(dict, options);
  refuse_lone_adapters(dict, options);
  LoadReport report;
  const Found found = collect_tensors(dict, options, report);
  const std::vector<StateEntry> state = model.state();
  compare(state, found, options, report);

  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> text_rows;
  for (const StateEntry& entry : state) {
    const auto tensor = found.find(entry.name);
    if (tensor == found.end()) continue;
    ++report.loaded;
    if (is_text_rows(entry.name) && tensor->second->shape[0] != entry.tensor.size(0)) {
      text_rows.emplace(entry.name, entry.tensor);
    } else {
      entry.tensor.copy_(tensor_to_torch(*tensor->second));
    }
  }
  if (!text_rows.empty()) load_text_rows(text_rows, found, options, report);
  return report;
}

void log_load_report(const LoadReport& report, const LoadOptions& options) {
  log_info("weights", report.loaded, " tensors read from ", options.source);
  if (!report.renamed.empty()) log_info("weights", report.renamed.size(), " base layers of adapters read");
  std::vector<std::string> deltas, other;
  for (const std::string& name : report.dropped)
    (name.find(".lora_") != std::string::npos ? deltas : other).push_back(name);
  if (!deltas.empty()) {
    log_warning("weights", deltas.size(), " adapter deltas in the file are not applied: ", some(deltas));
  }
  if (!other.empty()) log_info("weights", other.size(), " aliases and stored masks left out");
  if (!report.missing.empty()) {
    log_warning("weights", report.missing.size(),
                " tensors are not in the file and keep fresh values: ", some(report.missing));
  }
  if (!report.unexpected.empty()) {
    log_warning("weights", report.unexpected.size(),
                " entries of the file are not part of the model: ", some(report.unexpected));
  }
  if (!report.vocabulary) return;
  const VocabularyReport& rows = *report.vocabulary;
  log_info("weights", "text vocabulary opened from ", rows.base_pieces, " to ", rows.pieces,
           " pieces: ", rows.romanised, " new rows by romanised pieces, ", rows.subpiece, " by sub-pieces, ", rows.mean,
           " by the mean, ", rows.random, " random");
  log_info("weights", rows.spare_row_moved
                          ? concat("the base's spare row ", rows.base_pieces, " became the new spare row ", rows.pieces)
                          : concat("the base's spare row became the row of token ", rows.base_pieces,
                                   ", as in the Python trainer"));
}

Value state_value(const UnifiedVoice& model) {
  Value dict = Value::ordered_dict();
  for (const StateEntry& entry : model.state()) dict.set(entry.name, torch_to_tensor(entry.tensor));
  return dict;
}

}  // namespace train_gpt_v2
