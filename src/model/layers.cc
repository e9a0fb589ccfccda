#include "train_gpt_v2/model/layers.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>

namespace train_gpt_v2 {

Dense::Dense(std::int64_t inputs, std::int64_t outputs, bool with_bias, WeightLayout weight_layout,
             const at::TensorOptions& options)
    : layout(weight_layout) {
  const bool transposed = layout == WeightLayout::kInOut;
  weight =
      register_parameter("weight", at::empty({transposed ? inputs : outputs, transposed ? outputs : inputs}, options));
  if (with_bias) bias = register_parameter("bias", at::empty({outputs}, options));
}

at::Tensor Dense::forward(const at::Tensor& x) const {
  const at::Tensor y = layout == WeightLayout::kInOut
                           ? at::addmm(bias, x, weight)
                           : at::linear(x, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
  return adapter ? adapter(y, x) : y;
}

LayerNorm::LayerNorm(std::int64_t width, const at::TensorOptions& options) {
  weight = register_parameter("weight", at::empty({width}, options));
  bias = register_parameter("bias", at::empty({width}, options));
}

at::Tensor LayerNorm::forward(const at::Tensor& x) const {
  return at::layer_norm(x, weight.sizes(), weight, bias, 1e-5);
}

Table::Table(std::int64_t rows, std::int64_t width, const at::TensorOptions& options) {
  weight = register_parameter("weight", at::empty({rows, width}, options));
}

at::Tensor Table::forward(const at::Tensor& ids) const {
  return at::embedding(weight, ids);
}

ConvWeights::ConvWeights(at::IntArrayRef shape, const at::TensorOptions& options) {
  weight = register_parameter("weight", at::empty(shape, options));
  bias = register_parameter("bias", at::empty({shape[0]}, options));
}

}  // namespace train_gpt_v2
