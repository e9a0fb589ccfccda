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

#include "train_gpt_v2/config/options_model.h"
#include "train_gpt_v2/config/options_peft.h"

namespace train_gpt_v2 {

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
  bool batch_size_auto = false;                 // "auto": chosen once by measured memory, then batch_size holds it
  std::optional<std::int64_t> effective_batch;  // samples per optimiser step that "auto" keeps
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

struct LoggingOptions {
  std::string progress = "auto";  // auto | bar | lines | off
  bool tensorboard = true;
};

// Samples between two steps of training (interface.md §2, §6).
struct SamplingOptions {
  std::int64_t interval = 5000;  // 0 = off
  std::int64_t count = 5;
  std::string cases;  // "" = the first `count` validation pairs
  std::optional<std::int64_t> baseline_step;
  std::string vocoder_command;
  DecodingOptions decoding;
};

// What happens on a loss or gradient that stands out (z-score over a window); a non-finite step is always skipped.
struct StabilityOptions {
  std::string action = "warn";  // warn | skip | rollback | off
  double z_threshold = 6;
  std::int64_t window = 200;
  std::int64_t max_consecutive = 5;
  std::int64_t skip_steps = 0;
  std::int64_t max_rollbacks = 3;
};

struct DistributedOptions {
  std::string backend = "auto";  // auto | nccl | gloo
  bool shard_optimizer = false;  // ZeRO-1
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
  SamplingOptions sampling;
  StabilityOptions stability;
  LoggingOptions logging;
  DistributedOptions distributed;
};

}  // namespace train_gpt_v2
