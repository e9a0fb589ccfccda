#pragma once
// The GPT-2 stack of the reference (architecture.md §2): pre-norm blocks on rows [R,D] of packed sequences.
//
// No token or position table of its own; gelu_new; projections stored [in,out]. Dropout at four points: the input rows,
// the attention probabilities, and both residual branches. `ln_f` is a separate step so that callers can first select
// the rows they need.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/model/attention.h"
#include "train_gpt_v2/model/layers.h"

namespace train_gpt_v2 {

class Gpt2Block : public torch::nn::Module {
 public:
  Gpt2Block(const ModelOptions& options, std::int64_t index, const at::TensorOptions& tensor_options);
  // x [R,D] -> [R,D]
  at::Tensor forward(const at::Tensor& x, const Segments& segments, const Dropout& dropout) const;

  // The parts, for decoding with a cache: qkv [R,3D] of the normalised rows; the rest of the block after attention.
  at::Tensor project_qkv(const at::Tensor& x) const;
  at::Tensor finish(const at::Tensor& x, const at::Tensor& attended, const Segments& segments,
                    const Dropout& dropout) const;

 private:
  std::int64_t heads_, index_;
  std::shared_ptr<LayerNorm> ln_1_, ln_2_;
  std::shared_ptr<Dense> c_attn_, attn_c_proj_, c_fc_, mlp_c_proj_;
};

class Gpt2 : public torch::nn::Module {
 public:
  Gpt2(const ModelOptions& options, const at::TensorOptions& tensor_options);

  // x [R,D] -> [R,D] before ln_f. With checkpoint_every k > 0 every k-th block keeps only its input and is computed
  // again in the backward pass.
  at::Tensor forward(const at::Tensor& x, const Segments& segments, const Dropout& dropout,
                     std::int64_t checkpoint_every) const;

  const std::vector<std::shared_ptr<Gpt2Block>>& blocks() const { return blocks_; }
  const LayerNorm& ln_f() const { return *ln_f_; }
  std::int64_t heads() const { return heads_; }

 private:
  std::int64_t heads_;
  std::vector<std::shared_ptr<Gpt2Block>> blocks_;
  std::shared_ptr<LayerNorm> ln_f_;
};

}  // namespace train_gpt_v2
