#pragma once
// Sections of the configuration for adapters and the protection of earlier languages (options.h).

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace train_gpt_v2 {

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

}  // namespace train_gpt_v2
