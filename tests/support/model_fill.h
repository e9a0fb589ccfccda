#pragma once
// The tiny model and the deterministic fill of architecture.md §10, and batches for it.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/batch.h"
#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2::testing {

inline std::uint32_t fill_seed(std::string_view name) {  // FNV-1a, 32 bit
  std::uint32_t hash = 2166136261u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return hash;
}

inline at::Tensor filled(std::string_view name, at::IntArrayRef shape, double a, double b = 0) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  float* out = tensor.mutable_data_ptr<float>();
  const std::uint32_t seed = fill_seed(name);
  for (std::int64_t j = 0; j < tensor.numel(); ++j) {
    std::uint32_t x = static_cast<std::uint32_t>(j) + seed;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    out[j] = static_cast<float>(a * (x / 4294967296.0 - 0.5) + b);
  }
  return tensor;
}

inline ModelOptions tiny_options() {
  ModelOptions options;
  options.model_dim = 64;
  options.layers = 3;
  options.heads = 4;
  options.number_text_tokens = 50;
  options.number_mel_codes = 40;
  options.start_mel_token = 38;
  options.stop_mel_token = 39;
  options.max_text_tokens = 40;
  options.max_mel_tokens = 60;
  options.condition_module = {32, 64, 8, 2, "conv2d2", 2};
  options.emo_condition_module = {32, 48, 4, 2, "conv2d2", 2};
  options.dropout = 0;
  return options;
}

// Parameters by the rule of §10, then the wanted type.
inline std::shared_ptr<UnifiedVoice> filled_model(const ModelOptions& options, at::ScalarType dtype) {
  auto model = std::make_shared<UnifiedVoice>(options);
  const at::NoGradGuard no_grad;
  for (StateEntry& entry : model->state()) {
    if (entry.buffer) continue;
    const bool one = entry.tensor.dim() == 1 && (entry.name.ends_with(".weight") || entry.name.ends_with(".gamma"));
    entry.tensor.copy_(filled(entry.name, entry.tensor.sizes(), 0.2, one ? 1 : 0));
  }
  model->to(dtype);
  return model;
}

inline void add_sample(Batch& batch, const std::vector<std::int32_t>& text, const std::vector<std::int32_t>& codes) {
  batch.ids.push_back("sample" + std::to_string(batch.ids.size()));
  batch.samples.push_back(static_cast<std::uint32_t>(batch.samples.size()));
  batch.text.insert(batch.text.end(), text.begin(), text.end());
  batch.text_begin.push_back(static_cast<std::int64_t>(batch.text.size()));
  batch.codes.insert(batch.codes.end(), codes.begin(), codes.end());
  batch.code_begin.push_back(static_cast<std::int64_t>(batch.codes.size()));
}

inline std::vector<float> numbers(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kFloat).contiguous().flatten();
  return {flat.const_data_ptr<float>(), flat.const_data_ptr<float>() + flat.numel()};
}

// The two samples of §4.1 (or only one of them) with the pseudo inputs of §10 (b).
inline Batch worked_example(const std::vector<int>& which = {0, 1}, std::vector<std::int32_t> text0 = {10, 11, 12}) {
  const at::Tensor condition = filled("input.condition", {2, 32, 64}, 2);
  const at::Tensor emo_vec = filled("input.emo_vec", {2, 64}, 2);
  Batch batch;
  for (const int i : which) {
    if (i == 0) add_sample(batch, text0, {7, 8, 9, 7});
    if (i == 1) add_sample(batch, {20, 21}, {5, 6});
    const auto c = numbers(condition[i]), e = numbers(emo_vec[i]);
    batch.condition.insert(batch.condition.end(), c.begin(), c.end());
    batch.emo_vec.insert(batch.emo_vec.end(), e.begin(), e.end());
  }
  return batch;
}

}  // namespace train_gpt_v2::testing
