#pragma once
// The leaf modules of the network: a matrix with bias, a layer norm, a lookup table, and an empty group for dotted
// names such as "embed.conv.0". Parameter names are those of the reference (architecture.md §1.1).
//
// Constructors allocate without filling (initialise.h fills), so that a model on the meta device costs no memory.
// LayerNorm always computes in the type of its input's residual stream, which is fp32 or wider.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <functional>

namespace train_gpt_v2 {

// A module without own parameters: a part of a dotted name.
class Group : public torch::nn::Module {};

// [out, in] as torch's Linear, or [in, out] as the reference's GPT-2 stores its four projections.
enum class WeightLayout { kOutIn, kInOut };

class Dense : public torch::nn::Module {
 public:
  Dense(std::int64_t inputs, std::int64_t outputs, bool with_bias, WeightLayout layout,
        const at::TensorOptions& options);
  // x [..., inputs] -> [..., outputs]; with kInOut x must be [N, inputs].
  at::Tensor forward(const at::Tensor& x) const;

  const WeightLayout layout;
  at::Tensor weight, bias;  // bias is undefined where there is none
  // What runs beside the projection, if anything: (x·W + b, x) -> the output.
  std::function<at::Tensor(const at::Tensor& y, const at::Tensor& x)> adapter;
};

class LayerNorm : public torch::nn::Module {
 public:
  LayerNorm(std::int64_t width, const at::TensorOptions& options);
  at::Tensor forward(const at::Tensor& x) const;  // over the last axis, eps 1e-5, biased variance

  at::Tensor weight, bias;
};

class Table : public torch::nn::Module {
 public:
  Table(std::int64_t rows, std::int64_t width, const at::TensorOptions& options);
  at::Tensor forward(const at::Tensor& ids) const;  // ids int64 [...] -> [..., width]

  at::Tensor weight;
};

// A convolution's parameters; the modules that own one call the operator themselves.
class ConvWeights : public torch::nn::Module {
 public:
  ConvWeights(at::IntArrayRef shape, const at::TensorOptions& options);

  at::Tensor weight, bias;
};

}  // namespace train_gpt_v2
