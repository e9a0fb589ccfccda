#include "train_gpt_v2/app/model_source.h"

#include <filesystem>

#include "config_value.h"
#include "train_gpt_v2/adapt/peft_files.h"
#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/model/weights.h"
#include "train_gpt_v2/train/adapter_checkpoint.h"
#include "train_gpt_v2/train/checkpoint_content.h"
#include "train_gpt_v2/train/start_weights.h"

namespace train_gpt_v2 {
namespace {

Options find_options(const ModelRequest& request, const Value& root) {
  if (!request.config.empty()) return load_config(request.config, request.sets).options;
  std::string stored = stored_config(root);
  if (const Value* merged = root.find("config"); stored.empty() && merged) stored = config_text(*merged);
  if (stored.empty()) {
    throw Error("CFG020", "this file carries no configuration")
        .where(request.checkpoint)
        .fix("add --config FILE with the model section it was trained with");
  }
  return load_config_json(stored, request.checkpoint, request.sets).options;
}

// raw or ema: as asked, else what best_model.pth records, else raw.
std::string choose_weights(const ModelRequest& request, const Value& root) {
  std::string weights = request.weights;
  if (weights.empty()) {
    const Value* recorded = root.find("weights");
    weights = recorded && recorded->is_string() && recorded->as_string() == "ema" ? "ema" : "raw";
  }
  const Value* shadows = root.find("ema_state");
  if (weights == "ema" && (!shadows || shadows->is_none())) {
    throw Error("CKP014", "this checkpoint holds no EMA weights").where(request.checkpoint).fix("use --weights raw");
  }
  return weights;
}

// Plain weights into the model, averages over them where asked for.
void load_plain(const ModelRequest& request, const Value& root, const std::string& path, ModelSource& source) {
  const Options& options = source.options;
  LoadReport report;
  if (request.complete || checkpoint_kind(root) != CheckpointKind::kWeights) {
    LoadOptions how;
    how.source = path;
    how.complete = true;
    report = load_state(*source.model, root, how);
  } else {
    std::unique_ptr<Tokenizer> tokenizer;
    if (!options.data.tokenizer.empty()) tokenizer = std::make_unique<Tokenizer>(options.data.tokenizer);
    report = load_start_weights(*source.model, root, path, options, tokenizer.get());
  }
  for (const std::string& name : report.missing) {
    // A weight file may lack what precomputed conditioning replaces, as the reference only warns then.
    if (UnifiedVoice::is_conditioner(name) && options.model.conditioning == "precomputed") continue;
    throw Error("CKP005", "the file lacks a tensor of the model").where(path).detail(name);
  }
  if (source.weights == "ema") apply_averages(*source.model, root.at("ema_state"), path);
}

}  // namespace

ModelSource load_model(const ModelRequest& request) {
  const std::string path = absolute_path(request.checkpoint);
  const LoadedFile file = read_tensor_file(path, /*verify=*/true);
  refuse_fisher_file(file.root, path);
  refuse_newer_format(file.root, path);
  ModelSource source;
  source.options = find_options(request, file.root);
  source.weights = choose_weights(request, file.root);
  const torch::NoGradGuard no_grad;
  source.model = std::make_unique<UnifiedVoice>(source.options.model);
  initialise(*source.model, static_cast<std::uint64_t>(source.options.train.seed));
  const std::string& folder = source.options.init.peft_adapter;
  if (is_adapter_checkpoint(file.root)) {
    // init.peft_adapter in the run's configuration is where these adapters began.
    source.model->to(request.device);
    source.adapters = load_adapted_model(*source.model, file.root, source.weights == "ema", path);
    source.beside = stored_beside(file.root);
    source.adapter_dropout = source.options.peft.lora_dropout;
    log_info("weights", adapter_kind_name(source.adapters->kind()), " adapters on ", source.adapters->adapters().size(),
             " matrices, ", human_count(static_cast<std::uint64_t>(source.adapters->parameter_count())), " parameters");
  } else {
    load_plain(request, file.root, path, source);
    source.model->to(request.device);
    if (!folder.empty()) {
      source.adapters = apply_peft_folder(*source.model, folder);
      const PeftFolder read = read_peft_folder(folder);
      for (const auto& [name, tensor] : read.saved) source.beside.push_back(name);
      source.adapter_dropout = read.dropout;
    }
  }
  source.model->eval();
  for (torch::Tensor& parameter : source.model->parameters()) parameter.set_requires_grad(false);
  return source;
}

void require_adapters(const ModelSource& source, const std::string& checkpoint) {
  if (source.adapters) return;
  throw Error("PFT004", "this model has no adapters")
      .where(checkpoint)
      .fix("name a checkpoint of a run with peft.method, or add --set init.peft_adapter=FOLDER of peft");
}

void check_output_file(const std::string& output, const std::string& checkpoint) {
  std::error_code missing;  // then they are not the same
  if (std::filesystem::equivalent(output, checkpoint, missing)) {
    throw Error("ARG001", "--output names the checkpoint itself, which would be lost")
        .where(output)
        .fix("choose another file");
  }
  if (directory_exists(output)) {
    throw Error("IO003", "the output is a folder").where(output).fix("name a file in it");
  }
}

const Value& weights_in(const Value& root, const std::string& source) {
  return is_adapter_checkpoint(root) ? root.at("base_model") : find_model_dict(root, source);
}

std::unique_ptr<Dataset> open_pairs(const Options& options, const std::vector<std::string>& manifests) {
  const std::vector<std::string>& chosen = manifests.empty() ? options.data.val_manifests : manifests;
  if (chosen.empty()) {
    throw Error("CFG021", "no manifest to work on")
        .fix("give --manifest FILE, or data.val_manifests in the configuration");
  }
  std::shared_ptr<const Tokenizer> tokenizer;
  if (!options.data.tokenizer.empty()) tokenizer = std::make_shared<const Tokenizer>(options.data.tokenizer);
  return std::make_unique<Dataset>(chosen, std::vector<ReplayOptions>{}, options.data, options.model, tokenizer);
}

}  // namespace train_gpt_v2
