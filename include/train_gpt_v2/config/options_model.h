#pragma once
// Sections of the configuration that describe the model and how its codes are decoded (options.h).

#include <cstdint>
#include <optional>
#include <string>

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

}  // namespace train_gpt_v2
