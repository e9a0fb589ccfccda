#include "train_gpt_v2/model/conformer.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/conv1d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/glu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>

#include <cmath>
#include <limits>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kKernel = 15;

at::Tensor pointwise(const ConvWeights& conv, const at::Tensor& x) {
  return at::linear(x, conv.weight.squeeze(-1), conv.bias);
}

}  // namespace

at::Tensor sinusoidal_positions(std::int64_t width, const at::TensorOptions& options) {
  const auto real = options.dtype(at::kFloat).requires_grad(false);
  const at::Tensor position = at::arange(0, kMaxConditionFrames, real).unsqueeze(1);
  const at::Tensor rate = at::exp(at::arange(0, width, 2, real) * -(std::log(10000.0) / static_cast<double>(width)));
  at::Tensor table = at::stack({at::sin(position * rate), at::cos(position * rate)}, 2);
  return table.reshape({1, kMaxConditionFrames, width}).to(options.dtype());
}

RelativeAttention::RelativeAttention(std::int64_t width, std::int64_t heads, const at::TensorOptions& options)
    : heads_(heads) {
  pos_bias_u_ = register_parameter("pos_bias_u", at::empty({heads, width / heads}, options));
  pos_bias_v_ = register_parameter("pos_bias_v", at::empty({heads, width / heads}, options));
  const auto square = [&](const char* name, bool bias) {
    return register_module(name, std::make_shared<Dense>(width, width, bias, WeightLayout::kOutIn, options));
  };
  linear_q_ = square("linear_q", true);
  linear_k_ = square("linear_k", true);
  linear_v_ = square("linear_v", true);
  linear_out_ = square("linear_out", true);
  linear_pos_ = square("linear_pos", false);
}

at::Tensor RelativeAttention::forward(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& valid) const {
  const std::int64_t batch = x.size(0), frames = x.size(1), width = x.size(2), size = width / heads_;
  const at::Tensor q = linear_q_->forward(x).view({batch, frames, heads_, size});
  const at::Tensor k = linear_k_->forward(x).view({batch, frames, heads_, size}).permute({0, 2, 3, 1});
  const at::Tensor v = linear_v_->forward(x).view({batch, frames, heads_, size}).transpose(1, 2);
  const at::Tensor r = linear_pos_->forward(positions).view({frames, heads_, size}).permute({1, 2, 0});
  at::Tensor scores =
      at::matmul((q + pos_bias_u_).transpose(1, 2), k) + at::matmul((q + pos_bias_v_).transpose(1, 2), r);
  const at::Tensor hidden = valid.logical_not().view({batch, 1, 1, frames});
  scores =
      (scores / std::sqrt(static_cast<double>(size))).masked_fill(hidden, -std::numeric_limits<double>::infinity());
  // A row without any valid key is NaN after softmax; the second fill makes it zero.
  const at::Tensor share = at::softmax(scores, -1).masked_fill(hidden, 0.0);
  return linear_out_->forward(at::matmul(share, v).transpose(1, 2).reshape({batch, frames, width}));
}

ConvolutionModule::ConvolutionModule(std::int64_t width, const at::TensorOptions& options) {
  pointwise_conv1_ =
      register_module("pointwise_conv1", std::make_shared<ConvWeights>(at::IntArrayRef{2 * width, width, 1}, options));
  depthwise_conv_ =
      register_module("depthwise_conv", std::make_shared<ConvWeights>(at::IntArrayRef{width, 1, kKernel}, options));
  norm_ = register_module("norm", std::make_shared<LayerNorm>(width, options));
  pointwise_conv2_ =
      register_module("pointwise_conv2", std::make_shared<ConvWeights>(at::IntArrayRef{width, width, 1}, options));
}

at::Tensor ConvolutionModule::forward(const at::Tensor& x, const at::Tensor& valid, ConditionPadding padding) const {
  const at::Tensor hidden = valid.logical_not().unsqueeze(-1);
  at::Tensor y = at::glu(pointwise(*pointwise_conv1_, x.masked_fill(hidden, 0.0)), -1);
  // The reference leaves GLU(bias) in padded frames, which the next line spreads over the last seven real ones.
  if (padding == ConditionPadding::kClean) y = y.masked_fill(hidden, 0.0);
  y = at::conv1d(y.transpose(1, 2), depthwise_conv_->weight, depthwise_conv_->bias, 1, kKernel / 2, 1, x.size(2));
  y = at::silu(norm_->forward(y.transpose(1, 2)));
  return pointwise(*pointwise_conv2_, y).masked_fill(hidden, 0.0);
}

ConformerLayer::ConformerLayer(const ConditionModuleOptions& options, const at::TensorOptions& tensor_options) {
  const std::int64_t width = options.output_size;
  self_attn_ =
      register_module("self_attn", std::make_shared<RelativeAttention>(width, options.attention_heads, tensor_options));
  const auto feed_forward = register_module("feed_forward", std::make_shared<Group>());
  w_1_ = feed_forward->register_module(
      "w_1", std::make_shared<Dense>(width, options.linear_units, true, WeightLayout::kOutIn, tensor_options));
  w_2_ = feed_forward->register_module(
      "w_2", std::make_shared<Dense>(options.linear_units, width, true, WeightLayout::kOutIn, tensor_options));
  conv_module_ = register_module("conv_module", std::make_shared<ConvolutionModule>(width, tensor_options));
  norm_ff_ = register_module("norm_ff", std::make_shared<LayerNorm>(width, tensor_options));
  norm_mha_ = register_module("norm_mha", std::make_shared<LayerNorm>(width, tensor_options));
  norm_conv_ = register_module("norm_conv", std::make_shared<LayerNorm>(width, tensor_options));
  norm_final_ = register_module("norm_final", std::make_shared<LayerNorm>(width, tensor_options));
}

at::Tensor ConformerLayer::forward(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& valid,
                                   ConditionPadding padding) const {
  at::Tensor y = x + self_attn_->forward(norm_mha_->forward(x), positions, valid);
  y = y + conv_module_->forward(norm_conv_->forward(y), valid, padding);
  y = y + w_2_->forward(at::silu(w_1_->forward(norm_ff_->forward(y))));
  return norm_final_->forward(y);
}

Conformer::Conformer(const ConditionModuleOptions& options, const at::TensorOptions& tensor_options)
    : width_(options.output_size) {
  const auto embed_group = register_module("embed", std::make_shared<Group>());
  const auto conv = embed_group->register_module("conv", std::make_shared<Group>());
  embed_conv_ =
      conv->register_module("0", std::make_shared<ConvWeights>(at::IntArrayRef{width_, 1, 3, 3}, tensor_options));
  const auto out = embed_group->register_module("out", std::make_shared<Group>());
  embed_out_ = out->register_module(
      "0", std::make_shared<Dense>(width_ * kSubsampledFeatures, width_, true, WeightLayout::kOutIn, tensor_options));
  const auto pos_enc = embed_group->register_module("pos_enc", std::make_shared<Group>());
  positions_ = pos_enc->register_buffer("pe", sinusoidal_positions(width_, tensor_options));
  after_norm_ = register_module("after_norm", std::make_shared<LayerNorm>(width_, tensor_options));
  const auto encoders = register_module("encoders", std::make_shared<Group>());
  for (std::int64_t i = 0; i < options.num_blocks; ++i) {
    layers_.push_back(
        encoders->register_module(std::to_string(i), std::make_shared<ConformerLayer>(options, tensor_options)));
  }
}

at::Tensor Conformer::embed(const at::Tensor& features) const {
  std::vector<at::Tensor> items;
  for (std::int64_t i = 0; i < features.size(0); ++i) {
    const at::Tensor image = features[i].unsqueeze(0).unsqueeze(0);  // [1,1,Tf,1024]
    const at::Tensor map = at::relu(at::conv2d(image, embed_conv_->weight, embed_conv_->bias, 2));
    // Channel-major: index = c * 511 + f.
    const at::Tensor rows = map.squeeze(0).transpose(0, 1).reshape({map.size(2), width_ * kSubsampledFeatures});
    items.push_back(embed_out_->forward(rows) * std::sqrt(static_cast<double>(width_)));
  }
  return at::stack(items);
}

ConditionStates Conformer::forward(const at::Tensor& features, const at::Tensor& lengths,
                                   ConditionPadding padding) const {
  const std::int64_t frames = (features.size(1) - 1) / 2;
  if (features.size(1) < 3 || frames >= kMaxConditionFrames) {
    throw Error("DAT041", concat("speech features of ", features.size(1), " frames cannot be used for conditioning"))
        .detail(concat("allowed: 3 to ", 2 * kMaxConditionFrames, " frames of 20 ms"))
        .fix("cut the prompt utterance, or leave the sample out");
  }
  const at::Tensor last_input = at::arange(0, frames, features.options().dtype(at::kLong)).mul_(2).add_(2);
  const at::Tensor valid = last_input.unsqueeze(0).lt(lengths.to(features.device()).unsqueeze(1));
  at::Tensor x = embed(features);
  const at::Tensor positions = positions_[0].slice(0, 0, frames);
  for (const auto& layer : layers_) x = layer->forward(x, positions, valid, padding);
  return {after_norm_->forward(x), valid};
}

}  // namespace train_gpt_v2
