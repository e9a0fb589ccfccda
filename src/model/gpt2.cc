#include "train_gpt_v2/model/gpt2.h"

#include <ATen/ops/gelu.h>

#include <string>

#include "train_gpt_v2/model/checkpoint.h"

namespace train_gpt_v2 {

Gpt2Block::Gpt2Block(const ModelOptions& options, std::int64_t index, const at::TensorOptions& tensor_options)
    : heads_(options.heads), index_(index) {
  const std::int64_t width = options.model_dim;
  const auto dense = [&](torch::nn::Module& owner, const char* name, std::int64_t in, std::int64_t out) {
    return owner.register_module(name, std::make_shared<Dense>(in, out, true, WeightLayout::kInOut, tensor_options));
  };
  ln_1_ = register_module("ln_1", std::make_shared<LayerNorm>(width, tensor_options));
  const auto attn = register_module("attn", std::make_shared<Group>());
  c_attn_ = dense(*attn, "c_attn", width, 3 * width);
  attn_c_proj_ = dense(*attn, "c_proj", width, width);
  ln_2_ = register_module("ln_2", std::make_shared<LayerNorm>(width, tensor_options));
  const auto mlp = register_module("mlp", std::make_shared<Group>());
  c_fc_ = dense(*mlp, "c_fc", width, 4 * width);
  mlp_c_proj_ = dense(*mlp, "c_proj", 4 * width, width);
}

at::Tensor Gpt2Block::project_qkv(const at::Tensor& x) const {
  return c_attn_->forward(ln_1_->forward(x));
}

at::Tensor Gpt2Block::finish(const at::Tensor& x, const at::Tensor& attended, const Segments& segments,
                             const Dropout& dropout) const {
  const auto layer = static_cast<std::uint32_t>(index_);
  const at::Tensor y =
      x + apply_dropout(attn_c_proj_->forward(attended), dropout, dropout_site_attention_residual(layer), segments);
  const at::Tensor hidden = at::gelu(c_fc_->forward(ln_2_->forward(y)), "tanh");
  return y + apply_dropout(mlp_c_proj_->forward(hidden), dropout, dropout_site_mlp_residual(layer), segments);
}

at::Tensor Gpt2Block::forward(const at::Tensor& x, const Segments& segments, const Dropout& dropout) const {
  seed_cuda_dropout(x.device(), dropout, index_);
  return finish(x, causal_attention(project_qkv(x), heads_, segments, dropout, index_), segments, dropout);
}

Gpt2::Gpt2(const ModelOptions& options, const at::TensorOptions& tensor_options) : heads_(options.heads) {
  const auto group = register_module("h", std::make_shared<Group>());
  for (std::int64_t i = 0; i < options.layers; ++i) {
    blocks_.push_back(
        group->register_module(std::to_string(i), std::make_shared<Gpt2Block>(options, i, tensor_options)));
  }
  ln_f_ = register_module("ln_f", std::make_shared<LayerNorm>(options.model_dim, tensor_options));
}

at::Tensor Gpt2::forward(const at::Tensor& x, const Segments& segments, const Dropout& dropout,
                         std::int64_t checkpoint_every) const {
  seed_cuda_dropout(x.device(), dropout, -1);
  at::Tensor y = apply_dropout(x, dropout, dropout_site_embedding(), segments);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const Gpt2Block& block = *blocks_[i];
    if (checkpoint_every > 0 && (static_cast<std::int64_t>(i) + 1) % checkpoint_every == 0) {
      y = checkpoint([&block, segments, dropout](const at::Tensor& in) { return block.forward(in, segments, dropout); },
                     y);
    } else {
      y = block.forward(y, segments, dropout);
    }
  }
  return y;
}

}  // namespace train_gpt_v2
