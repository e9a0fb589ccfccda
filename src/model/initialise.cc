#include "train_gpt_v2/model/initialise.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cmath>
#include <numbers>
#include <string>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

// FNV-1a, 64 bit: the stream number of a name.
std::uint64_t name_stream(std::string_view name) {
  std::uint64_t hash = 14695981039346656037ull;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return hash;
}

double open_unit(std::uint32_t word) {
  return (static_cast<double>(word) + 0.5) * 0x1p-32;
}  // (0, 1)

// Calls make(four words) -> four floats for every group of four elements.
template <typename Make>
void fill_groups(at::Tensor tensor, std::uint64_t seed, std::string_view name, Make make) {
  const at::NoGradGuard no_grad;
  at::Tensor host = at::empty(tensor.sizes(), at::TensorOptions(at::kCPU).dtype(at::kFloat));
  float* out = host.mutable_data_ptr<float>();
  const std::int64_t count = host.numel();
  const std::uint64_t stream = name_stream(name);
  const std::array<std::uint32_t, 2> key{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  at::parallel_for(0, (count + 3) / 4, 4096, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) {
      const auto words = philox4x32({static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(group >> 32),
                                     static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)},
                                    key);
      const std::array<float, 4> values = make(words);
      for (std::int64_t k = 0; k < 4 && 4 * group + k < count; ++k) out[4 * group + k] = values[k];
    }
  });
  tensor.copy_(host);
}

void fill_constant(at::Tensor tensor, double value) {
  const at::NoGradGuard no_grad;
  tensor.fill_(value);
}

bool contains(std::string_view name, std::string_view part) {
  return name.find(part) != std::string_view::npos;
}

// Kaiming-uniform with a = sqrt(5): bound 1/sqrt(fan_in) for weight and bias alike.
double fan_in(const at::Tensor& weight) {
  const std::int64_t inputs = weight.numel() / weight.size(0);
  return static_cast<double>(inputs);
}

void fill_parameter(const std::string& name, at::Tensor tensor, std::int64_t layers, double bias_fan_in,
                    std::uint64_t seed) {
  const bool bias = ends_with(name, ".bias");
  if (name == "speed_emb.weight") return fill_constant(tensor, 0);
  if (ends_with(name, ".gamma")) return fill_constant(tensor, 1);
  if (ends_with(name, ".latents")) return fill_normal(tensor, 0.02, seed, name);
  if (contains(name, ".pos_bias_")) {
    const double rows = static_cast<double>(tensor.size(0)), columns = static_cast<double>(tensor.size(1));
    return fill_uniform(tensor, std::sqrt(6.0 / (rows + columns)), seed, name);
  }
  if (starts_with(name, "gpt.h.") && (contains(name, ".attn.") || contains(name, ".mlp."))) {
    if (bias) return fill_constant(tensor, 0);
    const double scale = contains(name, ".c_proj.") ? 1 / std::sqrt(2.0 * static_cast<double>(layers)) : 1;
    return fill_normal(tensor, 0.02 * scale, seed, name);
  }
  if (tensor.dim() == 1 && !bias) return fill_constant(tensor, 1);  // a norm's weight
  if (contains(name, "embedding.")) return fill_normal(tensor, 0.02, seed, name);
  if (bias && bias_fan_in == 0) return fill_constant(tensor, 0);  // a norm's bias
  fill_uniform(tensor, 1 / std::sqrt(bias ? bias_fan_in : fan_in(tensor)), seed, name);
}

}  // namespace

void fill_uniform(at::Tensor tensor, double bound, std::uint64_t seed, std::string_view name) {
  fill_groups(std::move(tensor), seed, name, [bound](const std::array<std::uint32_t, 4>& words) {
    std::array<float, 4> values;
    for (int k = 0; k < 4; ++k) values[k] = static_cast<float>((2 * open_unit(words[k]) - 1) * bound);
    return values;
  });
}

void fill_normal(at::Tensor tensor, double deviation, std::uint64_t seed, std::string_view name) {
  fill_groups(std::move(tensor), seed, name, [deviation](const std::array<std::uint32_t, 4>& words) {
    std::array<float, 4> values;  // Box-Muller, two pairs
    for (int k = 0; k < 4; k += 2) {
      const double radius = deviation * std::sqrt(-2 * std::log(open_unit(words[k])));
      const double angle = 2 * std::numbers::pi * open_unit(words[k + 1]);
      values[k] = static_cast<float>(radius * std::cos(angle));
      values[k + 1] = static_cast<float>(radius * std::sin(angle));
    }
    return values;
  });
}

void initialise(UnifiedVoice& model, std::uint64_t seed) {
  // A bias follows its weight directly in registration order; norms have one-dimensional weights.
  double weight_fan_in = 0;
  for (const StateEntry& entry : model.state()) {
    if (entry.buffer) continue;
    if (ends_with(entry.name, ".weight")) weight_fan_in = entry.tensor.dim() > 1 ? fan_in(entry.tensor) : 0;
    fill_parameter(entry.name, entry.tensor, model.options().layers, weight_fan_in, seed);
  }
}

}  // namespace train_gpt_v2
