#pragma once
// The configuration as plain structs, defaults in place (interface.md §2). The option table (option_table.h) is the one
// place that knows names, types, ranges and texts; parser, --help, schema and reference page come from it.
// Nothing looks up an option by name after start.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace train_gpt_v2 {

// One conformer + perceiver pair; architecture.md §0.
struct ConditionModuleOptions {
  std::int64_t output_size = 512;
  std::int64_t linear_units = 2048;
  std::int64_t attention_heads = 8;
  std::int64_t num_blocks = 6;
  std::string input_layer = "conv2d2";
  double perceiver_mult = 2;  // a real number: feed-forward width = int(width * mult * 2 / 3)
};

struct ModelOptions {
  std::int64_t model_dim = 1280;
  std::int64_t layers = 24;
  std::int64_t heads = 20;
  std::int64_t number_text_tokens = 12000;
  std::int64_t number_mel_codes = 8194;
  std::int64_t start_mel_token = 8192;
  std::int64_t stop_mel_token = 8193;
  std::int64_t start_text_token = 0;
  std::int64_t stop_text_token = 1;
  std::int64_t max_text_tokens = 600;
  std::int64_t max_mel_tokens = 1815;
  std::string condition_type = "conformer_perceiver";
  ConditionModuleOptions condition_module{512, 2048, 8, 6, "conv2d2", 2};
  ConditionModuleOptions emo_condition_module{512, 1024, 4, 4, "conv2d2", 2};
  std::int64_t condition_num_latent = 32;
  std::int64_t max_conditioning_inputs = 1;
  double dropout = 0.1;
  std::string conditioning = "precomputed";  // precomputed | online

  std::int64_t text_rows() const { return number_text_tokens + 1; }
  std::int64_t text_positions() const { return max_text_tokens + 2; }
  std::int64_t mel_positions() const { return max_mel_tokens + 2 + max_conditioning_inputs; }
  std::int64_t prefix_length() const { return condition_num_latent + 2; }
};

struct InitOptions {
  std::string from;                         // "" = fresh
  std::string new_rows = "romanised_mean";  // romanised_mean | subpiece_mean | mean_noise | random
  std::string peft_adapter;                 // "" = none; a peft folder, applied on top of `from`
};

struct ReplayOptions {
  std::string manifest;
  double share = 0;
};

struct DataOptions {
  std::vector<std::string> train_manifests;  // absolute, with any ::lang suffix kept
  std::vector<std::string> val_manifests;
  std::string tokenizer;
  std::string base_tokenizer;
  std::string language;
  std::int64_t num_workers = 2;
  std::int64_t prefetch_batches = 8;
  std::string on_bad_sample = "stop";  // stop | skip
  double max_bad_fraction = 0.01;
  std::string on_overlong = "drop";  // drop | trim | refuse
  std::string order_file;
  std::vector<ReplayOptions> replay;
};

struct SamplerOptions {
  std::string mode = "mega_batch";  // mega_batch | buckets | shuffle | sequential
  std::vector<std::int64_t> boundaries{32, 64, 128, 256, 512};
  std::optional<std::int64_t> batch_tokens;
  std::int64_t pool = 50;
  bool drop_last = false;
};

struct TrainOptions {
  std::int64_t batch_size = 64;
  std::int64_t grad_accumulation = 1;
  std::string layout = "packed";  // packed | padded
  std::string engine = "auto";    // auto | fused | modules
  std::optional<std::int64_t> max_steps;
  std::optional<std::int64_t> epochs = 10;
  std::optional<double> max_hours;
  std::int64_t seed = 1234;
  std::string precision = "auto";  // auto | fp32 | bf16 | fp16
  bool tf32 = true;
  bool deterministic = false;
  double text_loss_weight = 0.2;
  double mel_loss_weight = 0.8;
  std::string loss_normalization = "window_tokens";  // window_tokens | micro_batch
  double grad_clip = 1.0;                            // 0 = off
  bool clip_per_group = false;
  std::int64_t log_interval = 10;
  std::optional<std::int64_t> num_threads;
  std::int64_t activation_checkpointing = 0;
};

struct ParameterGroupOptions {
  std::string name;
  std::vector<std::string> match;
  std::optional<double> learning_rate;
  std::optional<double> lr_scale;
  std::optional<double> weight_decay;
};

struct OptimizerOptions {
  double learning_rate = 2e-5;
  double weight_decay = 0.01;
  double beta1 = 0.9, beta2 = 0.999;
  double eps = 1e-8;
  std::string schedule = "cosine";  // cosine | hf_cosine | constant | linear | wsd
  std::int64_t warmup_steps = 1000;
  double min_lr_ratio = 0;
  std::optional<std::int64_t> total_steps;
  std::vector<ParameterGroupOptions> groups;
  std::optional<double> layer_lr_decay;
  std::string lr_scaling = "none";  // none | linear | sqrt
  std::int64_t reference_batch_size = 64;
};

struct TrainableOptions {
  std::vector<std::string> freeze;
  std::vector<std::string> train;
  std::optional<std::string> text_rows;  // all | new_only | python_mask; unset = all, but a Python resume asks
  std::int64_t base_text_rows = 12000;
};

struct EmaOptions {
  bool enabled = false;
  double decay = 0.9999;
  bool warmup = true;
  std::int64_t update_every = 1;
  std::string device = "same";  // same | cpu
};

struct ValidationOptions {
  std::int64_t interval = 2000;  // 0 = off
  std::optional<std::int64_t> max_batches;
  std::optional<std::int64_t> batch_size;
  std::vector<std::string> by;  // language, speaker
  bool text_usage_gap = false;
  double gap_alarm = 0.02;
};

struct EarlyStoppingOptions {
  bool enabled = false;
  std::string metric = "mel_loss";
  std::int64_t patience = 5;
  double min_improvement = 0.01;
};

struct CheckpointOptions {
  std::int64_t interval = 1000;  // 0 = only at the end
  std::optional<double> interval_minutes;
  std::int64_t keep = 3;
  std::optional<std::int64_t> keep_every;
  std::vector<std::int64_t> pin;
  std::vector<std::string> best_metrics{"mel_loss"};
  bool background = true;
  double grace_seconds = 120;
};

// Adapters (algorithms.md §1-§3). Patterns keep the order of the file: the first match wins.
struct PeftOptions {
  std::string method;  // "" = none | lora | dora | adalora | dora_adalora
  std::int64_t rank = 16;
  std::vector<std::pair<std::string, std::int64_t>> rank_pattern;
  std::optional<double> lora_alpha;  // unset = 2 x rank of the module
  std::vector<std::pair<std::string, double>> alpha_pattern;
  double lora_dropout = 0.0;
  std::vector<std::string> target_modules{"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"};
  bool use_rslora = false;
  double lora_plus_ratio = 1;           // learning rate of B over that of A
  double conformer_budget_share = 0.3;  // of all adapter parameters at start
  std::vector<std::int64_t> pruning_steps;
  std::string budget_curve = "linear";        // linear | cubic
  std::optional<std::int64_t> target_budget;  // unset = round(initial total / 1.5)
  std::int64_t min_rank = 0;
  std::string budget_unit = "ranks";  // ranks | params
  // peft's own schedule, instead of pruning_steps: all four or none.
  std::optional<std::int64_t> tinit, tfinal, delta_t, target_rank;
  std::string importance = "sensitivity";  // sensitivity | magnitude
  double beta1 = 0.85, beta2 = 0.85;
  double orthogonality_weight = 0.5;
  std::string compaction = "hard";  // hard | soft

  bool enabled() const { return !method.empty(); }
  bool adaptive() const { return method == "adalora" || method == "dora_adalora"; }
};

struct EwcOptions {
  bool enabled = false;
  std::string fisher;            // the file written by `train_gpt_v2 fisher`
  std::optional<double> lambda;  // unset = auto: from the ratio of gradients
  std::string mode = "penalty";  // penalty | proximal
};

struct LoggingOptions {
  std::string progress = "auto";  // auto | bar | lines | off
  bool tensorboard = true;
};

// How codes are decoded (interface.md §6); the defaults are those of the reference's inference.
struct DecodingOptions {
  bool greedy = false;  // no sampling; with several beams plain beam search
  std::int64_t num_beams = 3;
  double temperature = 0.8;
  std::int64_t top_k = 30;          // 0 = off
  double top_p = 0.8;               // 1 = off
  std::optional<double> typical_p;  // unset = off
  double repetition_penalty = 10.0;
  double length_penalty = 0.0;
  std::optional<std::int64_t> max_codes;  // stop included; never above max_mel_tokens - 1, the default
  std::string mel_position = "training";  // training | reference_inference
  std::int64_t seed = 1234;
};

struct Options {
  ModelOptions model;
  InitOptions init;
  DataOptions data;
  SamplerOptions sampler;
  TrainOptions train;
  OptimizerOptions optimizer;
  TrainableOptions trainable;
  EmaOptions ema;
  ValidationOptions validation;
  EarlyStoppingOptions early_stopping;
  CheckpointOptions checkpoint;
  PeftOptions peft;
  EwcOptions ewc;
  LoggingOptions logging;
};

}  // namespace train_gpt_v2
