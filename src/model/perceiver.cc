#include "train_gpt_v2/model/perceiver.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>

#include <cmath>
#include <limits>
#include <string>

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kHeadSize = 64;
constexpr int kDepth = 2;

}  // namespace

PerceiverLayer::PerceiverLayer(torch::nn::Module& parent, const std::string& name, const PerceiverSizes& sizes,
                               const at::TensorOptions& options)
    : heads_(sizes.heads) {
  const std::int64_t inner = kHeadSize * sizes.heads;
  const auto hidden = static_cast<std::int64_t>(static_cast<double>(sizes.width) * sizes.multiplier * 2 / 3);
  const auto dense = [&](torch::nn::Module& owner, const char* key, std::int64_t in, std::int64_t out, bool bias) {
    return owner.register_module(key, std::make_shared<Dense>(in, out, bias, WeightLayout::kOutIn, options));
  };
  const auto layer = parent.register_module(name, std::make_shared<Group>());
  const auto attention = layer->register_module("0", std::make_shared<Group>());
  to_q_ = dense(*attention, "to_q", sizes.width, inner, false);
  to_kv_ = dense(*attention, "to_kv", sizes.width, 2 * inner, false);
  to_out_ = dense(*attention, "to_out", inner, sizes.width, false);
  const auto feed_forward = layer->register_module("1", std::make_shared<Group>());
  expand_ = dense(*feed_forward, "0", sizes.width, 2 * hidden, true);
  contract_ = dense(*feed_forward, "2", hidden, sizes.width, true);  // "1" is the activation, without parameters
}

at::Tensor PerceiverLayer::attend(const at::Tensor& latents, const at::Tensor& context, const at::Tensor& valid) const {
  const std::int64_t batch = latents.size(0), count = latents.size(1), inner = kHeadSize * heads_;
  const auto heads = [&](const at::Tensor& x) { return x.view({batch, -1, heads_, kHeadSize}).transpose(1, 2); };
  const at::Tensor q = heads(to_q_->forward(latents));
  const auto key_value = to_kv_->forward(at::cat({latents, context}, 1)).chunk(2, -1);
  const at::Tensor k = heads(key_value[0].contiguous()), v = heads(key_value[1].contiguous());
  at::Tensor scores = at::matmul(q, k.transpose(2, 3)) * std::pow(static_cast<double>(kHeadSize), -0.5);
  // At least the latents themselves are valid keys, so no row is empty.
  scores = scores.masked_fill(valid.logical_not().unsqueeze(1).unsqueeze(1), -std::numeric_limits<double>::infinity());
  const at::Tensor mixed = at::matmul(at::softmax(scores, -1), v).transpose(1, 2).reshape({batch, count, inner});
  return to_out_->forward(mixed);
}

at::Tensor PerceiverLayer::feed_forward(const at::Tensor& latents) const {
  const auto value_gate = expand_->forward(latents).chunk(2, -1);
  return contract_->forward(value_gate[0] * at::gelu(value_gate[1], "none"));
}

Perceiver::Perceiver(const PerceiverSizes& sizes, const at::TensorOptions& options) {
  latents_ = register_parameter("latents", at::empty({sizes.latents, sizes.width}, options));
  if (sizes.context_width != sizes.width) {
    proj_context_ = register_module(
        "proj_context", std::make_shared<Dense>(sizes.context_width, sizes.width, true, WeightLayout::kOutIn, options));
  }
  const auto layers = register_module("layers", std::make_shared<Group>());
  for (int i = 0; i < kDepth; ++i) layers_.emplace_back(*layers, std::to_string(i), sizes, options);
  const auto norm = register_module("norm", std::make_shared<Group>());
  gamma_ = norm->register_parameter("gamma", at::empty({sizes.width}, options));
}

at::Tensor Perceiver::forward(const at::Tensor& x, const at::Tensor& valid) const {
  const at::Tensor context = proj_context_ ? proj_context_->forward(x) : x;
  const std::int64_t batch = x.size(0), count = latents_.size(0), width = latents_.size(1);
  at::Tensor latents = latents_.unsqueeze(0).expand({batch, count, width});
  const at::Tensor keys = at::cat({at::ones({batch, count}, valid.options()), valid}, 1);
  for (const PerceiverLayer& layer : layers_) {
    latents = latents + layer.attend(latents, context, keys);
    latents = latents + layer.feed_forward(latents);
  }
  const at::Tensor length = at::linalg_vector_norm(latents, 2, {-1}, true).clamp_min(1e-12);
  return latents / length * std::sqrt(static_cast<double>(width)) * gamma_;
}

}  // namespace train_gpt_v2
