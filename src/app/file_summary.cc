#include "file_summary.h"

#include <algorithm>
#include <functional>
#include <set>

#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/weights.h"

namespace train_gpt_v2 {
namespace {

const Value* find_dict(const Value& root, std::string_view key) {
  const Value* found = root.find(key);
  return found && found->is_dict() ? found : nullptr;
}

bool holds_tensors_only(const Value& dict) {
  return dict.is_dict() && dict.size() > 0 &&
         std::all_of(dict.entries().begin(), dict.entries().end(),
                     [](const Value::Entry& entry) { return entry.key.is_string() && entry.value.is_tensor(); });
}

const Tensor* find_tensor(const Value& dict, std::string_view key) {
  const Value* found = dict.find(key);
  return found && found->is_tensor() ? &found->as_tensor() : nullptr;
}

bool has_prefix(const Value& dict, std::string_view prefix) {
  return std::any_of(dict.entries().begin(), dict.entries().end(), [&](const Value::Entry& entry) {
    return entry.key.is_string() && starts_with(entry.key.as_string(), prefix);
  });
}

// Deltas without a single weight that they change.
bool only_adapters(const Value& dict) {
  return holds_tensors_only(dict) &&
         std::all_of(dict.entries().begin(), dict.entries().end(), [](const Value::Entry& entry) {
           return entry.key.as_string().find(".lora_") != std::string::npos;
         });
}

FileKind kind_of(const Value& root) {
  if (!root.is_dict()) return FileKind::kOther;
  if (is_fisher_file(root)) return FileKind::kFisher;
  if (root.contains("base_model") && root.contains("adapter")) return FileKind::kAdapterCheckpoint;
  const Value* model = find_dict(root, "model");
  if (only_adapters(root) || (model && only_adapters(*model)) || (!model && find_dict(root, "adapter"))) {
    return FileKind::kAdapters;
  }
  if (root.contains("train_gpt_v2")) return root.contains("optimizer") ? FileKind::kCheckpoint : FileKind::kBest;
  if (model) return find_dict(root, "optimizer") ? FileKind::kPythonCheckpoint : FileKind::kWeights;
  return holds_tensors_only(root) ? FileKind::kWeights : FileKind::kOther;
}

std::string describe_model(const Value& model) {
  if (has_prefix(model, "spk_emb_proj.") || has_prefix(model, "lang_embedding.")) {
    return "IndexTTS-2.5, another network, which this program does not train";
  }
  const Tensor* text = find_tensor(model, "text_embedding.weight");
  const Tensor* mel = find_tensor(model, "mel_embedding.weight");
  std::set<std::string> blocks;
  for (const Value::Entry& entry : model.entries()) {
    if (entry.key.is_string() && starts_with(entry.key.as_string(), "gpt.h.")) {
      blocks.insert(split(entry.key.as_string(), '.')[2]);
    }
  }
  if (!text || text->shape.size() != 2 || blocks.empty()) return {};
  std::string line = concat("UnifiedVoice, width ", text->shape[1], ", ", blocks.size(), " layers, ", text->shape[0],
                            " text rows (", text->shape[0] - 1, " tokens)");
  if (mel && mel->shape.size() == 2) line += concat(", ", mel->shape[0], " mel codes");
  return line;
}

// Parameters in a state dict: the position tables are buffers.
std::size_t parameter_count(const Value& model) {
  return static_cast<std::size_t>(std::count_if(
      model.entries().begin(), model.entries().end(),
      [](const Value::Entry& entry) { return entry.key.is_string() && !ends_with(entry.key.as_string(), ".pe"); }));
}

// What torch.optim.AdamW.load_state_dict and the Python trainer demand (architecture.md §7.1).
std::string optimizer_problem(const Value& optimizer, const Value& model) {
  const Value* state = optimizer.find("state");
  const Value* groups = optimizer.find("param_groups");
  if (!state || !state->is_dict() || !groups || !groups->is_sequence()) return "its optimizer state is not AdamW's";
  for (const Value::Entry& entry : state->entries()) {
    if (entry.key.is_string()) return "the optimizer state is kept by name, because text rows train separately";
  }
  if (groups->size() != 1) {
    return concat("it has ", groups->size(), " parameter groups, the Python trainer knows one");
  }
  const Value* members = groups->items()[0].find("params");
  const std::size_t expected = parameter_count(model);
  if (!members || members->size() != expected) {
    return concat("its optimizer counts ", members ? members->size() : 0, " parameters, the model has ", expected);
  }
  return {};
}

std::string python_problem(const Value& root, FileKind kind) {
  if (kind == FileKind::kAdapterCheckpoint || kind == FileKind::kAdapters) {
    return "adapters are kept apart from the base model (train_gpt_v2 merge makes plain weights)";
  }
  if (kind == FileKind::kFisher) return "it holds Fisher information, no weights";
  const Value* model = find_dict(root, "model");
  const Value* optimizer = find_dict(root, "optimizer");
  if (!model || !optimizer) return "it holds weights only (they can be a starting point)";
  std::vector<std::string> missing;
  for (const char* key : {"scheduler", "scaler", "epoch", "step", "batch_idx", "recent_checkpoints"}) {
    if (!root.contains(key)) missing.emplace_back(key);
  }
  if (!missing.empty()) return concat("it lacks ", join(missing, ", "));
  return optimizer_problem(*optimizer, *model);
}

std::string resume_problem(const Value& root, FileKind kind) {
  switch (kind) {
    case FileKind::kCheckpoint:
      return {};
    case FileKind::kAdapterCheckpoint:
      if (root.contains("optimizer")) return {};
      return "it holds weights only; train_gpt_v2 merge makes a file of them that init.from takes";
    case FileKind::kPythonCheckpoint:
      for (const char* key : {"epoch", "step"}) {
        const Value* value = root.find(key);
        if (!value || !value->is_int()) return concat("it lacks ", key);
      }
      return {};
    case FileKind::kWeights:
    case FileKind::kBest:
      return "it holds weights only; name it in init.from to start from them";
    case FileKind::kAdapters:
      return "it holds adapters without the weights they change";
    case FileKind::kFisher:
      return "it holds Fisher information, no weights; name it in ewc.fisher";
    case FileKind::kOther:
      return "it holds no model that is known here";
  }
  return {};
}

}  // namespace

Value with_model_key(const Value& root) {
  if (!holds_tensors_only(root)) {
    // safetensors: the same, but for its metadata
    const Value* metadata = root.find("__metadata__");
    if (!metadata || !metadata->is_dict()) return root;
    Value model = Value::ordered_dict();
    for (const Value::Entry& entry : root.entries()) {
      if (!entry.key.is_string() || entry.key.as_string() != "__metadata__") model.set(entry.key, entry.value);
    }
    const char* key = is_fisher_file(root) ? "fisher" : "model";
    return Value::dict().set(key, std::move(model)).set("__metadata__", *metadata);
  }
  return Value::dict().set("model", root);
}

void visit_leaves(const Value& value, const std::string& path,
                  const std::function<void(const std::string&, const Value&)>& visit) {
  const auto below = [&](const std::string& key) { return path.empty() ? key : path + "." + key; };
  if (value.is_dict()) {
    for (const Value::Entry& entry : value.entries()) {
      const Value& key = entry.key;
      visit_leaves(entry.value,
                   below(key.is_string() ? key.as_string()
                         : key.is_int()  ? std::to_string(key.as_int())
                                         : std::string(key.kind_name())),
                   visit);
    }
  } else if (value.is_sequence()) {
    std::size_t i = 0;
    for (const Value& item : value.items()) visit_leaves(item, below(std::to_string(i++)), visit);
  } else {
    visit(path, value);
  }
}

FileSummary summarise(const Value& root) {
  FileSummary summary;
  summary.kind = kind_of(root);
  for (const char* key : {"model", "base_model"}) {
    if (const Value* model = find_dict(root, key)) {
      summary.model = describe_model(*model);
      break;
    }
  }
  visit_leaves(root, "", [&](const std::string& path, const Value& leaf) {
    if (!leaf.is_tensor()) {
      if (path.find('.') == std::string::npos && !leaf.is_opaque()) summary.values.emplace_back(path, leaf);
      return;
    }
    const Tensor& tensor = leaf.as_tensor();
    const std::string name = path.substr(0, path.find('.'));
    if (summary.sections.empty() || summary.sections.back().name != name) {
      summary.sections.emplace_back().name = name;
    }
    Section& section = summary.sections.back();
    ++section.tensors;
    section.elements += static_cast<std::uint64_t>(tensor.numel());
    section.bytes += tensor.nbytes();
    ++section.types[std::string(dtype_name(tensor.dtype))];
    summary.tensors.push_back({path, &tensor});
  });
  summary.python_problem = python_problem(root, summary.kind);
  summary.resume_problem = resume_problem(root, summary.kind);
  return summary;
}

std::string kind_text(FileKind kind) {
  switch (kind) {
    case FileKind::kWeights:
      return "model weights";
    case FileKind::kPythonCheckpoint:
      return "checkpoint of the Python trainer";
    case FileKind::kCheckpoint:
      return "checkpoint of train_gpt_v2";
    case FileKind::kAdapterCheckpoint:
      return "checkpoint of train_gpt_v2 with adapters";
    case FileKind::kBest:
      return "best weights of a train_gpt_v2 run";
    case FileKind::kAdapters:
      return "adapters without their base model";
    case FileKind::kFisher:
      return "Fisher information for ewc.fisher";
    case FileKind::kOther:
      return "tensors of no known model";
  }
  return {};
}

std::string_view kind_name(FileKind kind) {
  switch (kind) {
    case FileKind::kWeights:
      return "weights";
    case FileKind::kPythonCheckpoint:
      return "python_checkpoint";
    case FileKind::kCheckpoint:
      return "checkpoint";
    case FileKind::kAdapterCheckpoint:
      return "adapter_checkpoint";
    case FileKind::kBest:
      return "best";
    case FileKind::kAdapters:
      return "adapters";
    case FileKind::kFisher:
      return "fisher";
    case FileKind::kOther:
      return "other";
  }
  return {};
}

}  // namespace train_gpt_v2
