#include "train_gpt_v2/train/checkpoint_content.h"

#include <torch/version.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <unordered_set>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/model/tensor_bridge.h"
#include "train_gpt_v2/model/weights.h"
#include "train_gpt_v2/train/adapter_checkpoint.h"

namespace train_gpt_v2 {
namespace {

// A host copy that nothing else writes to.
Tensor owned_copy(const torch::Tensor& tensor) {
  return torch_to_tensor(tensor.is_cpu() ? tensor.detach().clone(at::MemoryFormat::Contiguous) : tensor.detach());
}

// The same for every tensor of a tree whose tensors may be written to while it is being saved.
Value deep_copy(const Value& value) {
  if (value.is_tensor()) {
    const Tensor tensor = value.as_tensor().contiguous();
    return Tensor::copy_of(tensor.dtype, tensor.shape, tensor.bytes());
  }
  if (value.is_dict()) {
    Value copy = value.is_ordered_dict() ? Value::ordered_dict() : Value::dict();
    for (const auto& [key, item] : value.entries()) copy.set(key, deep_copy(item));
    return copy;
  }
  if (!value.is_sequence()) return value;
  Value copy = value.is_list() ? Value::list() : Value::tuple();
  for (const Value& item : value.items()) copy.push_back(deep_copy(item));
  return copy;
}

// Elsewhere what save_state() gives is a copy on the host already.
bool computes_on_cpu(const CheckpointParts& parts) {
  return parts.parameters.tensors.front().value.is_cpu();
}

Value manifest_list(const std::vector<PythonExtras::Manifest>& manifests) {
  Value list = Value::list();
  for (const PythonExtras::Manifest& manifest : manifests) {
    Value languages = Value::list();
    for (const std::string& language : manifest.languages) languages.push_back(language);
    Value one = Value::dict();
    one.set("path", manifest.path);
    one.set("count", manifest.count);
    one.set("languages", std::move(languages));
    list.push_back(std::move(one));
  }
  return list;
}

// LambdaLR's state as torch writes it; the Python trainer reads it back.
Value scheduler_state(const ParameterSet& parameters, std::int64_t step, double next_factor) {
  Value base = Value::list(), last = Value::list(), lambdas = Value::list();
  for (const ParameterGroup& group : parameters.groups) {
    base.push_back(group.learning_rate);
    last.push_back(group.learning_rate * next_factor);
    lambdas.push_back(Value::dict());
  }
  Value state = Value::dict();
  state.set("base_lrs", std::move(base));
  state.set("last_epoch", step);
  state.set("_step_count", step + 1);
  state.set("_is_initial", false);
  state.set("_get_lr_called_within_step", false);
  state.set("_last_lr", std::move(last));
  state.set("lr_lambdas", std::move(lambdas));
  return state;
}

const char* amp_dtype(const std::string& precision) {
  return precision == "bf16" ? "bfloat16" : precision == "fp16" ? "float16" : "float32";
}

Value optional_number(const std::optional<double>& number) {
  return number ? Value(*number) : Value();
}

// Every tensor of the model from the file, names and shapes compared before any copy.
void restore_model(const Value& root, UnifiedVoice& model) {
  LoadOptions how;
  how.source = "checkpoint";
  how.complete = true;
  load_state(model, root, how);
}

// The parameters in the order the file's optimizer counts them: its state dict's order without buffers. Both orders of
// the reference (architecture.md §1.5) come out right.
std::vector<std::string> parameter_names(const Value& model) {
  std::vector<std::string> names;
  for (const auto& [key, value] : model.entries("model")) {
    if (!ends_with(key.as_string(), ".pe")) names.push_back(key.as_string());
  }
  return names;
}

void restore_ema(const Value& root, CheckpointParts& parts, const nlohmann::json* ours) {
  if (!parts.ema) {
    if (root.find("ema_state"))
      log_info("resume", "the checkpoint has an EMA, this run keeps none (ema.enabled false)");
    return;
  }
  const Value* shadows = root.find("ema_state");
  if (!shadows || shadows->is_none()) {
    log_info("resume", "the checkpoint has no EMA: it starts from the current weights");
    parts.ema->load_state(Value::dict(), 0, 0);
    return;
  }
  const Value* updates = root.find("ema_updates");
  const std::int64_t count = updates && updates->is_int() ? updates->as_int() : 0;
  parts.ema->load_state(*shadows, count, ours ? ours->value("ema_steps", count) : count);
}

// What an old checkpoint lacks starts anew, each with a line. A Python checkpoint may hold the values as plain keys.
void restore_monitors(const Value& root, Monitors& monitors, nlohmann::json saved) {
  const auto number = [&root](const char* key) -> nlohmann::json {
    const Value* value = root.find(key);
    if (value && value->is_int()) return value->as_int();
    if (value && value->is_float() && std::isfinite(value->as_double())) return value->as_double();
    return nullptr;
  };
  if (!saved.contains("best") && number("best_val_mel_loss").is_number()) {
    saved["best"] = {{"mel_loss", number("best_val_mel_loss")}};
  }
  if (!saved.contains("patience_counter") && number("patience_counter").is_number_integer()) {
    saved["patience_counter"] = number("patience_counter");
    const nlohmann::json reference = number("early_stopping_reference");
    saved["early_stopping_reference"] = reference.is_null() ? number("best_val_mel_loss") : reference;
  }
  if (!saved.contains("best")) {
    log_info("resume", "the checkpoint has no best values: the first validation sets them");
  }
  if (!saved.contains("patience_counter")) {
    log_info("resume", "the checkpoint has no early-stopping state: patience is counted from here");
  }
  try {
    monitors.load_state(saved);
  } catch (const nlohmann::json::exception& failure) {
    throw Error("CKP007", "a checkpoint's state cannot be read")
        .at("best and early-stopping values")
        .detail(failure.what());
  }
}

}  // namespace

// --- writing
// ----------------------------------------------------------------------------------------------------------

void SnapshotMaker::add_weights(Value& root, const CheckpointParts& parts) {
  const AdapterSet* adapters = parts.adaptation.adapters();
  root.set(adapters ? "base_model" : "model", model_state(parts));
  if (adapters) root.set("adapter", deep_copy(adapters->save_state()));
}

const Value& SnapshotMaker::model_state(const CheckpointParts& parts) {
  if (model_state_) return *model_state_;
  std::unordered_set<std::string> training;
  for (const TrainableTensor& tensor : parts.parameters.tensors) training.insert(tensor.name);
  std::unordered_map<std::string, torch::Tensor> bases;  // W0: the weights themselves hold W'
  if (const AdapterSet* adapters = parts.adaptation.adapters()) {
    for (const Adapter& adapter : adapters->adapters()) bases[adapter.spec().module + ".weight"] = adapter.base();
  }
  Value state = Value::ordered_dict();
  for (const StateEntry& entry : parts.model.state()) {
    if (training.count(entry.name)) {
      state.set(entry.name, owned_copy(entry.tensor));
      continue;
    }
    if (!frozen_host_copies_.contains(entry.name)) {
      const auto base = bases.find(entry.name);
      const torch::Tensor& frozen = base == bases.end() ? entry.tensor : base->second;
      frozen_host_copies_.set(entry.name, torch_to_tensor(frozen.detach().to(at::kCPU).contiguous()));
    }
    state.set(entry.name, frozen_host_copies_.at(entry.name));
  }
  return model_state_.emplace(std::move(state));
}

const Value& SnapshotMaker::ema_state(const CheckpointParts& parts) {
  if (ema_state_) return *ema_state_;
  const Value shadows = parts.ema->save_state();
  const bool live = computes_on_cpu(parts) || parts.options.ema.device == "cpu";
  return ema_state_.emplace(live ? deep_copy(shadows) : shadows);
}

void SnapshotMaker::forget_copies() {
  model_state_.reset();
  ema_state_.reset();
}

Value SnapshotMaker::training_checkpoint(const CheckpointParts& parts, const PythonExtras& extras,
                                         const std::string& build, double next_factor) {
  const TrainState& state = parts.state;
  Value manifests = Value::dict();
  manifests.set("train", manifest_list(extras.train));
  manifests.set("val", manifest_list(extras.validation));
  Value extra = Value::dict();
  extra.set("type", "step");
  extra.set("manifests", manifests);
  extra.set("tokenizer", parts.options.data.tokenizer);
  extra.set("amp_dtype", amp_dtype(parts.facts.precision));
  Value losses = Value::dict();
  losses.set("text_loss", state.last_text_loss);
  losses.set("mel_loss", state.last_mel_loss);
  losses.set("mel_top1", state.last_mel_top1);
  Value recent = Value::list();
  for (const std::string& path : extras.recent_checkpoints) recent.push_back(path);

  Value root = Value::dict();
  add_weights(root, parts);
  const Value moments = parts.optimizer.save_state(next_factor);
  root.set("optimizer", computes_on_cpu(parts) ? deep_copy(moments) : moments);
  root.set("scheduler", scheduler_state(parts.parameters, state.step, next_factor));
  root.set("scaler", parts.scaler ? parts.scaler->save_state() : Value());
  root.set("epoch", state.cursor.epoch);
  root.set("step", state.step);
  root.set("batch_idx", state.cursor.batch);
  root.set("recent_checkpoints", std::move(recent));
  root.set("accumulation_counter", 0);
  root.set("extra", std::move(extra));
  root.set("last_losses", std::move(losses));
  root.set("manifests", std::move(manifests));
  root.set("batch_size", parts.options.train.batch_size);
  root.set("grad_accumulation", parts.options.train.grad_accumulation);
  root.set("pytorch_version", TORCH_VERSION);
  if (parts.ema) {
    root.set("ema_state", ema_state(parts));
    root.set("ema_updates", parts.ema->updates());
  }
  root.set("best_val_mel_loss", optional_number(parts.monitors.best("mel_loss")));
  root.set("early_stopping_reference", optional_number(parts.monitors.early_stopping_reference()));
  root.set("patience_counter", parts.monitors.patience_counter());

  nlohmann::json exact = state.save_state();
  exact["monitors"] = parts.monitors.save_state();
  exact["stability"] = parts.guard.save_state();
  if (parts.ema) exact["ema_steps"] = parts.ema->steps();
  Value ours = Value::dict();
  ours.set("format_version", kCheckpointFormatVersion);
  ours.set("build", build);
  ours.set("config", effective_json(parts.options));
  ours.set("facts", parts.facts.save_state().dump());
  ours.set("state", exact.dump());
  Value adaptation = Value::dict();
  parts.adaptation.save_state(adaptation, parts.parameters);
  for (const auto& [key, value] : adaptation.entries()) ours.set(key, deep_copy(value));
  root.set("train_gpt_v2", std::move(ours));
  return root;
}

Value SnapshotMaker::best_checkpoint(const CheckpointParts& parts, const Improvement& improvement, double val_mel_loss,
                                     const std::string& build) {
  Value ours = Value::dict();
  ours.set("format_version", kCheckpointFormatVersion);
  ours.set("build", build);
  ours.set("config", effective_json(parts.options));
  ours.set("metric", improvement.metric.metric);
  ours.set("split", improvement.metric.split);
  ours.set("value", improvement.value);
  if (const AdapterSet* adapters = parts.adaptation.adapters()) {
    ours.set("adapters", describe_adapters(*adapters, parts.parameters.beside_adapters()));
  }
  Value root = Value::dict();
  add_weights(root, parts);
  if (parts.ema) root.set("ema_state", ema_state(parts));
  root.set("epoch", parts.state.epoch);
  root.set("step", parts.state.step);
  root.set("val_mel_loss", val_mel_loss);
  root.set("weights", improvement.weights);
  root.set("train_gpt_v2", std::move(ours));
  return root;
}

// --- reading
// ----------------------------------------------------------------------------------------------------------

CheckpointKind checkpoint_kind(const Value& root) {
  if (!root.is_dict() || !root.find("optimizer") || !root.find("step")) return CheckpointKind::kWeights;
  return root.find("train_gpt_v2") ? CheckpointKind::kOurs : CheckpointKind::kPython;
}

std::string stored_config(const Value& root) {
  const Value* ours = root.find("train_gpt_v2");
  const Value* config = ours ? ours->find("config") : nullptr;
  return config && config->is_string() ? config->as_string() : "";
}

namespace {

// A JSON text stored in the file; damaged text is an error with the place.
nlohmann::json stored_json(const Value& root, const char* key) {
  const std::string& text = root.at("train_gpt_v2").at(key).as_string(concat("train_gpt_v2.", key));
  nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) throw Error("CKP007", "a checkpoint's state cannot be read").at(concat("train_gpt_v2.", key));
  return json;
}

}  // namespace

BatchCursor plain_position(const Value& root, const Options& options) {
  const std::int64_t epoch = root.find("epoch") ? root.at("epoch").as_int("epoch") : 0;
  const std::int64_t batch_idx = root.find("batch_idx") ? root.at("batch_idx").as_int("batch_idx") : 0;
  const Value* batch_size = root.find("batch_size");
  const std::int64_t theirs = batch_size && batch_size->is_int() ? batch_size->as_int() : options.train.batch_size;
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  if (epoch < 0 || batch_idx < 0 || theirs <= 0 || epoch > kMost || batch_idx > kMost || theirs > kMost) {
    throw Error("CKP007", "the checkpoint's counters are out of range").at("epoch, batch_idx, batch_size");
  }
  BatchCursor place;
  place.epoch = static_cast<std::uint64_t>(epoch);
  place.batch = static_cast<std::uint64_t>(batch_idx * theirs / options.train.batch_size);
  return place;
}

void refuse_newer_format(const Value& root, const std::string& path) {
  const Value* ours = root.find("train_gpt_v2");
  if (!ours) return;
  const std::int64_t version = ours->at("format_version").as_int("train_gpt_v2.format_version");
  if (version <= kCheckpointFormatVersion) return;
  throw Error("CKP006",
              concat("this checkpoint has format ", version, "; this program reads up to ", kCheckpointFormatVersion))
      .where(path)
      .fix("update train_gpt_v2");
}

RunFacts stored_facts(const Value& root) {
  RunFacts facts;
  facts.load_state(stored_json(root, "facts"));
  return facts;
}

const Value* stored_ewc(const Value& root) {
  const Value* ours = root.find("train_gpt_v2");
  return ours ? ours->find("ewc") : nullptr;
}

TrainState stored_state(const Value& root, const Options& options) {
  nlohmann::json state = stored_json(root, "state");
  if (!state.contains("cursor")) state["cursor"] = plain_position(root, options).save_state();
  TrainState stored;
  try {
    stored.load_state(state);
  } catch (const nlohmann::json::exception& failure) {
    throw Error("CKP007", "a checkpoint's state cannot be read").at("train_gpt_v2.state").detail(failure.what());
  }
  return stored;
}

void restore_training_state(const Value& root, CheckpointParts& parts, bool groups_changed) {
  const nlohmann::json state = stored_json(root, "state");
  TrainState restored = stored_state(root, parts.options);
  if (!state.contains("cursor")) {
    log_info("resume", "the checkpoint has no sampler state: epoch ", restored.cursor.epoch, " goes on from batch ",
             restored.cursor.batch, " and may repeat or miss samples");
  }
  try {
    parts.guard.load_state(state.value("stability", nlohmann::json::object()));
  } catch (const nlohmann::json::exception& failure) {
    throw Error("CKP007", "a checkpoint's state cannot be read").at("train_gpt_v2.state").detail(failure.what());
  }
  const bool adapted = is_adapter_checkpoint(root);
  if (adapted != (parts.adaptation.adapters() != nullptr)) {  // the resume rules refused what the configurations say
    throw Error("CKP007", "a checkpoint's tensors and its configuration disagree about adapters");
  }
  if (adapted) {
    load_base_model(parts.model, root, "checkpoint");
  } else {
    restore_model(root, parts.model);
  }
  parts.adaptation.load_state(root, parts.parameters);
  parts.optimizer.load_state(root.at("optimizer"), parameter_names(root.at(adapted ? "base_model" : "model")),
                             groups_changed);
  restore_ema(root, parts, &state);
  const Value* scaler = root.find("scaler");
  if (parts.scaler && scaler && scaler->is_dict()) parts.scaler->load_state(*scaler);
  restore_monitors(root, parts.monitors, restored.monitors);
  parts.state = std::move(restored);
}

void restore_python_state(const Value& root, CheckpointParts& parts) {
  const Value& model = root.at("model");
  const Options& options = parts.options;
  restore_model(root, parts.model);
  parts.optimizer.load_state(root.at("optimizer"), parameter_names(model), /*missing_start_anew=*/false);
  restore_ema(root, parts, nullptr);
  if (const Value* scaler = root.find("scaler"); parts.scaler && scaler && scaler->is_dict()) {
    parts.scaler->load_state(*scaler);
  }
  restore_monitors(root, parts.monitors, nlohmann::json::object());
  TrainState state;
  state.step = root.at("step").as_int("step");
  if (state.step < 0) throw Error("CKP007", "the checkpoint's counters are out of range").at("step");
  state.windows = state.step;
  state.cursor = plain_position(root, options);
  state.epoch = static_cast<std::int64_t>(state.cursor.epoch);
  parts.state = std::move(state);
}

}  // namespace train_gpt_v2
