#include "train_gpt_v2/app/model_source.h"

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/model/weights.h"
#include "train_gpt_v2/train/adapter_checkpoint.h"
#include "train_gpt_v2/train/checkpoint_content.h"

namespace train_gpt_v2 {
namespace {

Options find_options(const ModelRequest& request, const Value& root) {
  if (!request.config.empty()) return load_config(request.config, request.sets).options;
  const std::string stored = stored_config(root);
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

}  // namespace

ModelSource load_model(const ModelRequest& request) {
  const std::string path = absolute_path(request.checkpoint);
  const LoadedFile file = read_tensor_file(path, /*verify=*/true);
  ModelSource source;
  source.options = find_options(request, file.root);
  source.weights = choose_weights(request, file.root);
  const torch::NoGradGuard no_grad;
  source.model = std::make_unique<UnifiedVoice>(source.options.model);
  initialise(*source.model, static_cast<std::uint64_t>(source.options.train.seed));
  LoadOptions how;
  how.source = path;
  how.seed = static_cast<std::uint64_t>(source.options.train.seed);
  how.complete = request.complete || checkpoint_kind(file.root) != CheckpointKind::kWeights;
  const LoadReport report = load_state(*source.model, file.root, how);
  for (const std::string& name : report.missing) {
    // A weight file may lack what precomputed conditioning replaces, as the reference only warns then.
    if (UnifiedVoice::is_conditioner(name) && source.options.model.conditioning == "precomputed") continue;
    throw Error("CKP005", "the file lacks a tensor of the model").where(path).detail(name);
  }
  if (source.weights == "ema") apply_averages(*source.model, file.root.at("ema_state"), path);
  source.model->to(request.device);
  source.model->eval();
  for (torch::Tensor& parameter : source.model->parameters()) parameter.set_requires_grad(false);
  return source;
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
