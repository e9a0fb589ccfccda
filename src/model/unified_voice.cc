#include "train_gpt_v2/model/unified_voice.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>

#include <array>

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kEmoWidth = 1024;  // of the emotion perceiver, fixed

struct HeadScores {
  at::Tensor loss;    // [N], fp32 or wider, differentiable
  at::Tensor logits;  // [N,V] without gradient
};

HeadScores score(const Dense& head, const at::Tensor& states, const at::Tensor& targets) {
  at::Tensor logits = head.forward(states);
  if (logits.scalar_type() != at::kDouble) logits = logits.to(at::kFloat);
  constexpr std::int64_t kNoReduction = 0;
  return {at::cross_entropy_loss(logits, targets, {}, kNoReduction), logits.detach()};
}

at::Tensor sum_by_sample(const at::Tensor& values, const at::Tensor& sample, std::int64_t count) {
  return at::zeros({count}, values.options().dtype(at::kDouble).requires_grad(false))
      .index_add_(0, sample, values.detach().to(at::kDouble));
}

void collect(const torch::nn::Module& module, const std::string& prefix, std::vector<StateEntry>& out) {
  for (const auto& item : module.named_parameters(false)) out.push_back({prefix + item.key(), item.value(), false});
  for (const auto& item : module.named_buffers(false)) out.push_back({prefix + item.key(), item.value(), true});
  for (const auto& child : module.named_children()) collect(*child.value(), prefix + child.key() + ".", out);
}

}  // namespace

UnifiedVoice::UnifiedVoice(const ModelOptions& options, const at::TensorOptions& tensor_options) : options_(options) {
  const std::int64_t width = options.model_dim;
  const auto& spk = options.condition_module;
  const auto& emo = options.emo_condition_module;
  const auto table = [&](const char* name, std::int64_t rows) {
    return register_module(name, std::make_shared<Table>(rows, width, tensor_options));
  };
  const auto dense = [&](const char* name, std::int64_t in, std::int64_t out) {
    return register_module(name, std::make_shared<Dense>(in, out, true, WeightLayout::kOutIn, tensor_options));
  };
  const auto positions = [&](const char* name, std::int64_t rows) {
    const auto group = register_module(name, std::make_shared<Group>());
    return group->register_module("emb", std::make_shared<Table>(rows, width, tensor_options));
  };
  conditioning_encoder = register_module("conditioning_encoder", std::make_shared<Conformer>(spk, tensor_options));
  perceiver_encoder = register_module(
      "perceiver_encoder",
      std::make_shared<Perceiver>(
          PerceiverSizes{width, spk.output_size, options.condition_num_latent, spk.attention_heads, spk.perceiver_mult},
          tensor_options));
  emo_conditioning_encoder =
      register_module("emo_conditioning_encoder", std::make_shared<Conformer>(emo, tensor_options));
  emo_perceiver_encoder = register_module(
      "emo_perceiver_encoder",
      std::make_shared<Perceiver>(
          PerceiverSizes{kEmoWidth, emo.output_size, 1, emo.attention_heads, emo.perceiver_mult}, tensor_options));
  text_embedding = table("text_embedding", options.text_rows());
  emo_layer = dense("emo_layer", width, width);
  emovec_layer = dense("emovec_layer", kEmoWidth, width);
  mel_embedding = table("mel_embedding", options.number_mel_codes);
  gpt = register_module("gpt", std::make_shared<Gpt2>(options, tensor_options));
  mel_pos_embedding = positions("mel_pos_embedding", options.mel_positions());
  text_pos_embedding = positions("text_pos_embedding", options.text_positions());
  final_norm = register_module("final_norm", std::make_shared<LayerNorm>(width, tensor_options));
  text_head = dense("text_head", width, options.text_rows());
  mel_head = dense("mel_head", width, options.number_mel_codes);
  speed_emb = table("speed_emb", 2);
}

at::Tensor UnifiedVoice::embed(const ModelInputs& inputs) {
  const auto [condition, emo_vec] = conditions(inputs);
  const std::int64_t width = options_.model_dim;
  const at::Tensor conditioning = (condition + emo_vec.unsqueeze(1)).reshape({-1, width});
  // The second speed row comes first (§4 step 3).
  const at::Tensor& speed = speed_emb->weight;
  const at::Tensor text = text_embedding->forward(inputs.text_ids) + text_pos_embedding->forward(inputs.text_positions);
  const at::Tensor mel = mel_embedding->forward(inputs.mel_ids) + mel_pos_embedding->forward(inputs.mel_positions);
  const at::Tensor parts = at::cat({conditioning, speed.slice(0, 1, 2).expand({inputs.count, width}),
                                    speed.slice(0, 0, 1).expand({inputs.count, width}), text, mel});
  return at::index_select(parts, 0, inputs.gather);
}

at::Tensor UnifiedVoice::run_blocks(const at::Tensor& x, const Segments& segments,
                                    const ForwardOptions& options) const {
  return gpt->forward(x, segments, options.dropout, options.checkpoint_every);
}

at::Tensor UnifiedVoice::final_states(const at::Tensor& rows) const {
  return final_norm->forward(gpt->ln_f().forward(rows));
}

ForwardResult UnifiedVoice::forward(const ModelInputs& inputs, const ForwardOptions& options) {
  const at::Tensor x = run_blocks(embed(inputs), inputs.segments, options);
  // Norms and heads only where something is scored; both norms work row by row.
  const at::Tensor text_states = final_states(at::index_select(x, 0, inputs.text_scored_rows));
  const at::Tensor mel_states = final_states(at::index_select(x, 0, inputs.mel_scored_rows));
  const HeadScores text = score(*text_head, text_states, inputs.text_targets);
  const HeadScores mel = score(*mel_head, mel_states, inputs.mel_targets);

  ForwardResult result;
  result.text_loss_sum = text.loss.sum(at::kDouble);
  result.mel_loss_sum = mel.loss.sum(at::kDouble);
  result.text_tokens = inputs.text_tokens();
  result.mel_tokens = inputs.mel_tokens();
  const at::Tensor hit = at::argmax(mel.logits, -1).eq(inputs.mel_targets);
  result.mel_top1_count = hit.sum();
  if (!options.detailed) return result;
  const at::Tensor own = mel.logits.gather(1, inputs.mel_targets.unsqueeze(1));
  result.mel_top5_count = mel.logits.gt(own).sum(-1).lt(5).sum();
  result.text_loss_by_sample = sum_by_sample(text.loss, inputs.text_sample, inputs.count);
  result.mel_loss_by_sample = sum_by_sample(mel.loss, inputs.mel_sample, inputs.count);
  result.mel_top1_by_sample = sum_by_sample(hit, inputs.mel_sample, inputs.count);
  return result;
}

at::Tensor UnifiedVoice::get_conditioning(const FeatureBatch& features, ConditionPadding padding) const {
  const ConditionStates states = conditioning_encoder->forward(features.features, features.lengths, padding);
  return perceiver_encoder->forward(states.states, states.valid);
}

at::Tensor UnifiedVoice::get_emo_conditioning(const FeatureBatch& features, ConditionPadding padding) const {
  const ConditionStates states = emo_conditioning_encoder->forward(features.features, features.lengths, padding);
  return emo_perceiver_encoder->forward(states.states, states.valid).squeeze(1);
}

at::Tensor UnifiedVoice::get_emovec(const FeatureBatch& features, ConditionPadding padding) const {
  return emo_layer->forward(emovec_layer->forward(get_emo_conditioning(features, padding)));
}

at::Tensor UnifiedVoice::merge_emovec(const FeatureBatch& speaker, const FeatureBatch& emotion, double alpha) const {
  const at::Tensor base = get_emovec(speaker);
  return base + alpha * (get_emovec(emotion) - base);
}

bool UnifiedVoice::is_conditioner(const std::string& name) {
  static constexpr std::array kParts{"conditioning_encoder.",  "perceiver_encoder.", "emo_conditioning_encoder.",
                                     "emo_perceiver_encoder.", "emo_layer.",         "emovec_layer."};
  for (const char* part : kParts) {
    if (name.rfind(part, 0) == 0) return true;
  }
  return false;
}

bool UnifiedVoice::conditioners_trainable() const {
  const std::array<const torch::nn::Module*, 6> modules{
      conditioning_encoder.get(),  perceiver_encoder.get(), emo_conditioning_encoder.get(),
      emo_perceiver_encoder.get(), emo_layer.get(),         emovec_layer.get()};
  for (const torch::nn::Module* module : modules) {
    for (const at::Tensor& parameter : module->parameters()) {
      if (parameter.requires_grad()) return true;
    }
    for (const auto& part : module->modules()) {
      const auto* dense = dynamic_cast<const Dense*>(part.get());
      if (dense && dense->adapter) return true;  // what runs beside it may train
    }
  }
  return false;
}

std::pair<at::Tensor, at::Tensor> UnifiedVoice::conditions(const ModelInputs& inputs) const {
  if (inputs.condition.defined()) return {inputs.condition, inputs.emo_vec};
  const at::AutoGradMode mode(at::GradMode::is_enabled() && conditioners_trainable());
  const FeatureBatch& emotion = inputs.emo_features.defined() ? inputs.emo_features : inputs.speaker_features;
  return {get_conditioning(inputs.speaker_features), get_emovec(emotion)};
}

std::vector<StateEntry> UnifiedVoice::state() const {
  std::vector<StateEntry> entries;
  collect(*this, "", entries);
  return entries;
}

}  // namespace train_gpt_v2
