#pragma once
// The conformer that turns 1024-dim speech features into conditioning states (architecture.md §3.1-§3.3).
//
// features [B,Tf,1024] -> states [B,T',C] with T' = (Tf-1)/2, and valid [B,T'] (true = a real frame).
// Relative positions enter as a bias by absolute key index: the reference never applies the relative shift.
// kReference reproduces a padded batch of the reference, where padding leaks into the last frames through the
// depthwise convolution; kClean gives every item of a batch what it would get alone.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/model/layers.h"

namespace train_gpt_v2 {

inline constexpr std::int64_t kFeatureSize = 1024;         // fixed by the speech encoder
inline constexpr std::int64_t kSubsampledFeatures = 511;   // (1024 - 1) / 2
inline constexpr std::int64_t kMaxConditionFrames = 5000;  // rows of the position table

enum class ConditionPadding { kReference, kClean };

struct ConditionStates {
  at::Tensor states;  // [B,T',C]
  at::Tensor valid;   // bool [B,T']
};

class RelativeAttention : public torch::nn::Module {
 public:
  RelativeAttention(std::int64_t width, std::int64_t heads, const at::TensorOptions& options);
  // x [B,T,C], positions [T,C], valid bool [B,T]
  at::Tensor forward(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& valid) const;

 private:
  std::int64_t heads_;
  at::Tensor pos_bias_u_, pos_bias_v_;
  std::shared_ptr<Dense> linear_q_, linear_k_, linear_v_, linear_out_, linear_pos_;
};

class ConvolutionModule : public torch::nn::Module {
 public:
  ConvolutionModule(std::int64_t width, const at::TensorOptions& options);
  at::Tensor forward(const at::Tensor& x, const at::Tensor& valid, ConditionPadding padding) const;

 private:
  std::shared_ptr<ConvWeights> pointwise_conv1_, depthwise_conv_, pointwise_conv2_;
  std::shared_ptr<LayerNorm> norm_;
};

class ConformerLayer : public torch::nn::Module {
 public:
  ConformerLayer(const ConditionModuleOptions& options, const at::TensorOptions& tensor_options);
  at::Tensor forward(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& valid,
                     ConditionPadding padding) const;

 private:
  std::shared_ptr<RelativeAttention> self_attn_;
  std::shared_ptr<Dense> w_1_, w_2_;
  std::shared_ptr<ConvolutionModule> conv_module_;
  std::shared_ptr<LayerNorm> norm_ff_, norm_mha_, norm_conv_, norm_final_;
};

class Conformer : public torch::nn::Module {
 public:
  Conformer(const ConditionModuleOptions& options, const at::TensorOptions& tensor_options);

  // `lengths` int64 [B] on any device: true frame counts. Throws DAT when Tf is below 3 or T' not below 5000.
  ConditionStates forward(const at::Tensor& features, const at::Tensor& lengths, ConditionPadding padding) const;

  // The part before the layers, scaled by sqrt(C); items one at a time, because the convolution's output is large.
  at::Tensor embed(const at::Tensor& features) const;

 private:
  std::int64_t width_;
  std::shared_ptr<ConvWeights> embed_conv_;
  std::shared_ptr<Dense> embed_out_;
  at::Tensor positions_;  // the buffer pos_enc.pe [1,5000,C]
  std::shared_ptr<LayerNorm> after_norm_;
  std::vector<std::shared_ptr<ConformerLayer>> layers_;
};

// The sinusoidal table [1,5000,C] of §3.2, computed in float32 and then cast.
at::Tensor sinusoidal_positions(std::int64_t width, const at::TensorOptions& options);

}  // namespace train_gpt_v2
