#pragma once
// The perceiver resampler (architecture.md §3.4): any number of conditioning frames -> a fixed number of latents.
//
// x [B,T',C] and valid bool [B,T'] -> [B,latents,width]. Depth 2, head size 64, no pre-norms; the latents are keys too,
// and come first. `proj_context` exists only where C differs from the width.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "train_gpt_v2/model/layers.h"

namespace train_gpt_v2 {

struct PerceiverSizes {
  std::int64_t width = 0;          // of the latents
  std::int64_t context_width = 0;  // C
  std::int64_t latents = 0;
  std::int64_t heads = 0;
  double multiplier = 0;  // feed-forward width = int(width * multiplier * 2 / 3)
};

class PerceiverLayer {
 public:
  PerceiverLayer(torch::nn::Module& parent, const std::string& name, const PerceiverSizes& sizes,
                 const at::TensorOptions& options);
  // Each is added to its first argument: latents [B,n,width], context [B,T',width], valid bool [B,n+T'] of both.
  at::Tensor attend(const at::Tensor& latents, const at::Tensor& context, const at::Tensor& valid) const;
  at::Tensor feed_forward(const at::Tensor& latents) const;

 private:
  std::int64_t heads_;
  std::shared_ptr<Dense> to_q_, to_kv_, to_out_, expand_, contract_;
};

class Perceiver : public torch::nn::Module {
 public:
  Perceiver(const PerceiverSizes& sizes, const at::TensorOptions& options);
  at::Tensor forward(const at::Tensor& x, const at::Tensor& valid) const;
  const std::vector<PerceiverLayer>& layers() const { return layers_; }

 private:
  at::Tensor latents_, gamma_;
  std::shared_ptr<Dense> proj_context_;  // null: identity
  std::vector<PerceiverLayer> layers_;
};

}  // namespace train_gpt_v2
