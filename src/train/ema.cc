#include "train_gpt_v2/train/ema.h"

#include <ATen/ops/_foreach_lerp.h>

#include <cmath>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/model/tensor_bridge.h"

namespace train_gpt_v2 {

Ema::Ema(ParameterSet& parameters, const EmaOptions& options) : parameters_(parameters), options_(options) {
  torch::NoGradGuard no_grad;
  for (const TrainableTensor& tensor : parameters_.tensors) {
    const auto device = options_.device == "cpu" ? torch::Device(torch::kCPU) : tensor.value.device();
    shadows_.push_back(tensor.value.detach().to(device, torch::kFloat32, false, /*copy=*/true).contiguous());
  }
}

double Ema::decay_at(std::int64_t update) const {
  double decay = options_.decay;
  if (options_.warmup) {
    // timm's curve, gamma 1, power 3/4; t counts optimiser steps, so update_every does not change the shape.
    const double t = static_cast<double>(update * options_.update_every - 1);
    decay = t <= 0 ? 0.0 : std::min(decay, 1.0 - std::pow(1.0 + t, -0.75));
  }
  return std::pow(decay, static_cast<double>(options_.update_every));
}

bool Ema::count_step() {
  TGV2_CHECK(!swapped_);
  if (++steps_ % options_.update_every != 0) return false;
  ++updates_;
  return true;
}

JoinedAverages Ema::update_with(const AdamW& optimizer) {
  const bool beside = !shadows_.empty() && shadows_[0].device() == parameters_.tensors[0].value.device();
  if (!optimizer.one_pass() || !beside) return {};
  JoinedAverages averages;
  averages.joined = true;
  if (!count_step()) return averages;
  averages.decay = decay_at(updates_);
  for (const torch::Tensor& shadow : shadows_) averages.values.push_back(shadow.mutable_data_ptr<float>());
  return averages;
}

void Ema::update() {
  if (!count_step()) return;
  torch::NoGradGuard no_grad;
  const double weight = 1.0 - decay_at(updates_);
  std::vector<torch::Tensor> values;
  values.reserve(shadows_.size());
  for (std::size_t i = 0; i < shadows_.size(); ++i) {
    values.push_back(parameters_.tensors[i].value.detach().to(shadows_[i].device(), torch::kFloat32));
  }
  at::_foreach_lerp_(shadows_, values, weight);
}

Value Ema::save_state() const {
  TGV2_CHECK(!swapped_);
  Value state = Value::ordered_dict();
  for (std::size_t i = 0; i < shadows_.size(); ++i) {
    state.set(parameters_.tensors[i].name, torch_to_tensor(shadows_[i]));
  }
  return state;
}

void Ema::load_state(const Value& shadows, std::int64_t updates, std::int64_t steps) {
  TGV2_CHECK(!swapped_);
  torch::NoGradGuard no_grad;
  for (std::size_t pass = 0; pass < 2; ++pass) {  // first compare everything, then copy
    for (std::size_t i = 0; i < shadows_.size(); ++i) {
      const TrainableTensor& target = parameters_.tensors[i];
      const Value* saved = shadows.find(target.name);
      torch::Tensor source = saved ? tensor_to_torch(saved->as_tensor()) : target.value.detach();
      // A whole table serves the view of its new rows.
      if (saved && target.first_row > 0 && source.dim() == target.value.dim() &&
          source.size(0) == target.value.size(0) + target.first_row) {
        source = source.narrow(0, target.first_row, target.value.size(0));
      }
      if (source.sizes() != target.value.sizes()) {
        throw Error("CKP005", "the EMA state does not fit the model").at(target.name);
      }
      if (pass == 0) continue;
      if (shadows_[i].sizes() != source.sizes()) {  // an adapter that was pruned since
        shadows_[i] = torch::empty(source.sizes(), shadows_[i].options());
      }
      shadows_[i].copy_(source);
    }
  }
  updates_ = updates;
  steps_ = steps;
}

torch::Tensor& Ema::shadow_of(const std::string& name) {
  for (std::size_t i = 0; i < shadows_.size(); ++i) {
    if (parameters_.tensors[i].name == name) return shadows_[i];
  }
  TGV2_CHECK(false);
}

void Ema::keep(const std::vector<KeptIndices>& shrunk) {
  TGV2_CHECK(!swapped_);
  const torch::NoGradGuard no_grad;
  for (const KeptIndices& one : shrunk) {
    torch::Tensor& shadow = shadow_of(one.parameter);
    const torch::Tensor index = torch::tensor(one.kept, torch::kLong).to(shadow.device());
    shadow = shadow.index_select(one.dimension, index);
  }
}

void Ema::mask(const std::string& name, const std::vector<bool>& on) {
  const torch::NoGradGuard no_grad;
  torch::Tensor& shadow = shadow_of(name);
  for (std::size_t rank = 0; rank < on.size(); ++rank) {
    if (!on[rank]) shadow[static_cast<std::int64_t>(rank)].zero_();
  }
}

void Ema::swap() {
  torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < shadows_.size(); ++i) {
    torch::Tensor& value = parameters_.tensors[i].value;
    const torch::Tensor raw = value.detach().to(shadows_[i].device(), torch::kFloat32, false, /*copy=*/true);
    value.detach().copy_(shadows_[i]);
    shadows_[i].copy_(raw);
  }
  swapped_ = !swapped_;
}

Ema::ScopedSwap::ScopedSwap(Ema& ema) : ema_(ema) {
  TGV2_CHECK(!ema_.swapped_);
  ema_.swap();
}

Ema::ScopedSwap::~ScopedSwap() {
  ema_.swap();
}

}  // namespace train_gpt_v2
