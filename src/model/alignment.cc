#include "train_gpt_v2/model/alignment.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>

#include <cmath>
#include <limits>
#include <set>

#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

ModelInputs inputs_of(const UnifiedVoice& model, const Utterance& utterance) {
  Batch batch;
  batch.ids = {"utterance"};
  batch.text = utterance.text;
  batch.text_begin = {0, static_cast<std::int64_t>(utterance.text.size())};
  batch.codes = utterance.codes;
  batch.code_begin = {0, static_cast<std::int64_t>(utterance.codes.size())};
  const ModelOptions& options = model.options();
  batch.condition.assign(static_cast<std::size_t>(options.condition_num_latent * options.model_dim), 0.0f);
  batch.emo_vec.assign(static_cast<std::size_t>(options.model_dim), 0.0f);
  ModelInputs inputs = assemble_inputs(batch, options, BatchLayout::kPacked, model.device(), model.dtype());
  inputs.condition = utterance.condition.to(inputs.condition.options()).unsqueeze(0);
  inputs.emo_vec = utterance.emo_vec.to(inputs.emo_vec.options()).unsqueeze(0);
  return inputs;
}

// Attention probabilities [H, queries, text] of the rows from `first_query` on to the text ids.
at::Tensor text_attention(const at::Tensor& qkv, std::int64_t heads, std::int64_t first_query, std::int64_t queries,
                          std::int64_t first_text, std::int64_t text) {
  const std::int64_t rows = qkv.size(0), size = qkv.size(1) / 3 / heads;
  const auto parts = qkv.view({rows, 3, heads, size}).permute({1, 2, 0, 3}).unbind(0);
  const at::Tensor q = parts[0].slice(1, first_query, first_query + queries);
  at::Tensor scores = at::matmul(q, parts[1].transpose(1, 2)) / std::sqrt(static_cast<double>(size));
  const at::Tensor later = at::ones({queries, rows}, scores.options().dtype(at::kBool)).triu(first_query + 1);
  scores = scores.masked_fill(later, -std::numeric_limits<double>::infinity());
  return at::softmax(scores, -1).slice(2, first_text, first_text + text);
}

}  // namespace

at::Tensor latents(UnifiedVoice& model, const Utterance& utterance) {
  const at::NoGradGuard no_grad;
  const ModelInputs inputs = inputs_of(model, utterance);
  const at::Tensor x = model.run_blocks(model.embed(inputs), inputs.segments);
  const std::int64_t begin = inputs.mel_begin.front();
  return model.final_states(x.slice(0, begin, begin + static_cast<std::int64_t>(utterance.codes.size())));
}

std::pair<double, double> path_measures(const at::Tensor& weights) {
  const at::Tensor path = at::argmax(weights, 1);
  std::set<std::int64_t> visited;
  std::int64_t forward = 0, last = 0;
  for (std::int64_t i = 0; i < path.numel(); ++i) {
    const auto at = path[i].item<std::int64_t>();
    visited.insert(at);
    if (i > 0 && at >= last) ++forward;
    last = at;
  }
  const std::int64_t steps = path.numel() - 1;
  return {steps > 0 ? static_cast<double>(forward) / static_cast<double>(steps) : 1.0,
          static_cast<double>(visited.size()) / static_cast<double>(weights.size(1))};
}

Alignment text_alignment(UnifiedVoice& model, const Utterance& utterance) {
  TGV2_CHECK(!utterance.text.empty() && !utterance.codes.empty());
  const at::NoGradGuard no_grad;
  const ModelInputs inputs = inputs_of(model, utterance);
  const std::int64_t heads = model.options().heads;
  const auto text = static_cast<std::int64_t>(utterance.text.size());
  const auto codes = static_cast<std::int64_t>(utterance.codes.size());
  Alignment best;
  double best_order = -1;
  at::Tensor x = model.embed(inputs);
  const auto& blocks = model.gpt->blocks();
  for (std::size_t layer = 0; layer < blocks.size(); ++layer) {
    const at::Tensor qkv = blocks[layer]->project_qkv(x);
    // Row k predicts code k; the start token in front of the text ids is left out.
    at::Tensor map = text_attention(qkv, heads, inputs.mel_begin[0], codes, inputs.text_begin[0] + 1, text);
    map = map.to(at::TensorOptions(at::kCPU).dtype(at::kFloat));
    map = map / map.sum(-1, true).clamp_min(1e-30);
    for (std::int64_t head = 0; head < heads; ++head) {
      const auto [monotonicity, coverage] = path_measures(map[head]);
      if (monotonicity * coverage <= best_order) continue;
      best_order = monotonicity * coverage;
      best = {map[head].contiguous(), static_cast<std::int64_t>(layer), head, monotonicity, coverage};
    }
    const auto index = static_cast<std::int64_t>(layer);
    x = blocks[layer]->finish(x, causal_attention(qkv, heads, inputs.segments, {}, index), inputs.segments, {});
  }
  return best;
}

}  // namespace train_gpt_v2
