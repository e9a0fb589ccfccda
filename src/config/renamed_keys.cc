// What became of names that people know from elsewhere: the Python trainer's flags, the plan, common other names.

#include <array>

#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

struct Renamed {
  std::string_view old_name;  // a full path, or one last segment wherever it stands
  std::string_view hint;
};

// Full paths are looked up first. Dashes count as underscores.
constexpr auto kRenamed = std::to_array<Renamed>({
    // in the right section under another name, or in a section where it does not live
    {"optimizer.grad_clip", "this key is train.grad_clip"},
    {"optimizer.name", "there is one optimizer, AdamW; leave the key out"},
    {"optimizer.type", "there is one optimizer, AdamW; leave the key out"},
    {"validation.manifests", "this key is data.val_manifests"},
    {"train.manifests", "this key is data.train_manifests"},
    {"data.train", "this key is data.train_manifests"},
    {"data.val", "this key is data.val_manifests"},
    {"data.batch_size", "this key is train.batch_size"},
    {"train.dropout", "this key is model.dropout"},
    {"ema.update_interval", "this key is ema.update_every"},
    {"checkpoint.save_interval", "this key is checkpoint.interval"},
    {"sampler.bucketing", "write sampler.mode: \"buckets\""},
    {"gpt",
     "the keys of gpt: are in section \"model\"; `train_gpt_v2 config import config.yaml` converts a whole file"},
    {"dataset",
     "dataset.bpe_model is data.tokenizer here; `train_gpt_v2 config import config.yaml` converts a whole file"},
    {"dataset.bpe_model", "this key is data.tokenizer"},
    // the Python trainer's flags
    {"train_manifest", "this key is data.train_manifests, a list"},
    {"val_manifest", "this key is data.val_manifests, a list"},
    {"bpe_model", "this key is data.tokenizer"},
    {"base_checkpoint", "this key is init.from"},
    {"gpt_checkpoint", "this key is init.from"},
    {"output_dir", "the run directory is given on the command line: --output-dir DIR"},
    {"resume", "resuming is asked for on the command line: --resume auto|none|PATH"},
    {"grad_accumulation_steps", "this key is train.grad_accumulation"},
    {"gradient_accumulation_steps", "this key is train.grad_accumulation"},
    {"gradient_accumulation", "this key is train.grad_accumulation"},
    {"accumulation", "this key is train.grad_accumulation"},
    {"accum_steps", "this key is train.grad_accumulation"},
    {"lr", "this key is optimizer.learning_rate"},
    {"warmup", "this key is optimizer.warmup_steps"},
    {"val_interval", "this key is validation.interval"},
    {"validation_interval", "this key is validation.interval"},
    {"eval_interval", "this key is validation.interval"},
    {"val_max_batches", "this key is validation.max_batches"},
    {"save_interval", "this key is checkpoint.interval"},
    {"save_every", "this key is checkpoint.interval"},
    {"keep_checkpoints", "this key is checkpoint.keep (3 or more)"},
    {"keep_last", "this key is checkpoint.keep (3 or more)"},
    {"max_grad_norm", "this key is train.grad_clip"},
    {"clip_grad_norm", "this key is train.grad_clip"},
    {"amp", "this key is train.precision (\"auto\", \"fp32\", \"bf16\", \"fp16\")"},
    {"amp_dtype", "this key is train.precision (\"auto\", \"fp32\", \"bf16\", \"fp16\")"},
    {"use_amp", "this key is train.precision (\"auto\", \"fp32\", \"bf16\", \"fp16\")"},
    {"grad_checkpointing", "this key is train.activation_checkpointing (0 = off, k = every k-th block)"},
    {"gradient_checkpointing", "this key is train.activation_checkpointing (0 = off, k = every k-th block)"},
    {"text_weight", "this key is train.text_loss_weight"},
    {"mel_weight", "this key is train.mel_loss_weight"},
    {"workers", "this key is data.num_workers"},
    {"n_workers", "this key is data.num_workers"},
    {"device", "the device is given on the command line: --device auto|cpu|cuda|cuda:N"},
    {"num_epochs", "this key is train.epochs"},
    {"max_epochs", "this key is train.epochs"},
    {"steps", "this key is train.max_steps"},
    // the plan's names
    {"use_ema", "this key is ema.enabled"},
    {"ema_decay", "this key is ema.decay"},
    {"ema_update_every", "this key is ema.update_every"},
    {"bucket_boundaries", "this key is sampler.boundaries"},
    {"length_bucketing", "write sampler.mode: \"buckets\""},
    {"use_bucketing", "write sampler.mode: \"buckets\""},
    {"early_stopping_patience", "this key is early_stopping.patience"},
    {"early_stop_patience", "this key is early_stopping.patience"},
    {"min_delta", "this key is early_stopping.min_improvement"},
    {"llrd", "this key is optimizer.layer_lr_decay"},
    {"layer_decay", "this key is optimizer.layer_lr_decay"},
    {"param_groups", "this key is optimizer.groups"},
    {"freeze_base_rows", "this key is trainable.text_rows (\"new_only\", \"python_mask\")"},
    {"vocab_size", "this key is model.number_text_tokens"},
    {"n_layer", "this key is model.layers"},
    {"num_layers", "this key is model.layers"},
    {"n_head", "this key is model.heads"},
    {"num_heads", "this key is model.heads"},
    {"hidden_size", "this key is model.model_dim"},
    {"n_embd", "this key is model.model_dim"},
});

}  // namespace

std::string renamed_key_hint(std::string_view path) {
  if (find_option(path)) return "";
  std::string name(path);
  for (char& c : name) c = c == '-' ? '_' : c;
  for (const Renamed& known : kRenamed) {
    if (name == known.old_name) return std::string(known.hint);
  }
  const std::string last = name.substr(name.rfind('.') + 1);
  for (const Renamed& known : kRenamed) {
    if (last != name && last == known.old_name && known.old_name != "gpt" && known.old_name != "dataset")
      return std::string(known.hint);
  }
  if (name == path) return "";
  // a flag written with dashes: --num-workers
  for (const OptionRow& row : option_rows()) {
    if (row.path.substr(row.path.rfind('.') + 1) == last) return concat("this key is ", row.path);
  }
  return "";
}

}  // namespace train_gpt_v2
