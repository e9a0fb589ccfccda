#include "train_gpt_v2/train/optimizer.h"

#include <ATen/Parallel.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <unordered_map>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/tensor_bridge.h"
#include "train_gpt_v2/train/device.h"

namespace train_gpt_v2 {
namespace {

// Sum of squares of one gradient as a double on its device. On the CPU torch's own fp32 norm loses 1.5e-5 at tens of
// millions of elements (cpu_fast_path.md §2), so chunks are summed in fp32 and the chunks in double.
torch::Tensor sum_of_squares(const torch::Tensor& grad) {
  constexpr std::int64_t kChunk = 4096;
  const torch::Tensor flat = grad.reshape({-1});
  const std::int64_t whole = flat.numel() / kChunk * kChunk;
  torch::Tensor total = torch::zeros({}, flat.options().dtype(torch::kFloat64));
  if (whole > 0) {
    const torch::Tensor norms = at::linalg_vector_norm(flat.narrow(0, 0, whole).view({-1, kChunk}), 2, 1);
    total = total + norms.to(torch::kFloat64).square().sum();
  }
  if (whole < flat.numel()) {
    const torch::Tensor norm = at::linalg_vector_norm(flat.narrow(0, whole, flat.numel() - whole), 2);
    total = total + norm.to(torch::kFloat64).square();
  }
  return total;
}

// The saved tensor for this parameter, cut to the rows of a view when a whole table was saved; checked, not copied.
torch::Tensor fitting(const Value& one, const char* key, const TrainableTensor& target) {
  const Value* saved = one.find(key);
  if (!saved) throw Error("CKP007", concat("optimizer state without ", key)).at(target.name);
  torch::Tensor source = tensor_to_torch(saved->as_tensor());
  if (target.first_row > 0 && source.dim() == target.value.dim() &&
      source.size(0) == target.value.size(0) + target.first_row) {
    source = source.narrow(0, target.first_row, target.value.size(0));
  }
  if (source.sizes() != target.value.sizes()) {
    throw Error("CKP007", "the optimizer state does not fit the model")
        .at(target.name)
        .detail(
            concat("checkpoint ", key, " ", shape_text(source.sizes()), ", model ", shape_text(target.value.sizes())))
        .fix("resume with the model and the parameter groups the checkpoint was written with");
  }
  return source;
}

// What the kernels can work on: all on one device, float, contiguous.
bool plain(const std::vector<TrainableTensor>& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const TrainableTensor& tensor) {
    for (const torch::Tensor& t : {tensor.value, tensor.grad}) {
      if (!t.defined() || t.device() != tensors.front().value.device() || t.scalar_type() != torch::kFloat32 ||
          !t.is_contiguous()) {
        return false;
      }
    }
    return true;
  });
}

}  // namespace

AdamW::AdamW(ParameterSet& parameters, const OptimizerOptions& options, const OptimizerShards* shards)
    : parameters_(parameters), options_(options), shards_(shards) {
  for (std::size_t i = 0; i < parameters_.tensors.size(); ++i) {
    const torch::Tensor& value = parameters_.tensors[i].value;
    const auto like = torch::TensorOptions().dtype(torch::kFloat32).device(value.device());
    moments_.emplace_back();
    if (shards_ && !shards_->mine(i)) continue;
    moments_.back() = {torch::zeros(value.sizes(), like), torch::zeros(value.sizes(), like), torch::zeros({}, like)};
  }
  pending_scale_.assign(parameters_.groups.size(), 1.0);
  if (parameters_.tensors.empty() || !plain(parameters_.tensors)) return;
  const torch::Device device = parameters_.tensors.front().value.device();
  kernels_ = device.is_cpu() ? make_cpu_kernels(at::get_num_threads()) : device_kernels(device, /*tf32=*/false);
  if (!kernels_) return;
  for (Moments& moments : moments_) {
    if (moments.step.defined()) moments.step = moments.step.cpu();  // the kernels take them by value
  }
}

// The squared norm of every group's gradients.
std::vector<double> AdamW::squares() {
  std::vector<double> result(parameters_.groups.size(), 0.0);
  if (kernels_) {
    for (std::size_t g = 0; g < result.size(); ++g) {
      std::vector<GradientSpan> spans;
      for (const int member : parameters_.groups[g].members) {
        const torch::Tensor& grad = parameters_.tensors[static_cast<std::size_t>(member)].grad;
        spans.push_back({grad.const_data_ptr<float>(), 1, grad.numel(), nullptr});
      }
      result[g] = kernels_->sum_of_squares(spans.data(), static_cast<std::int64_t>(spans.size()));
    }
    return result;
  }
  std::vector<torch::Tensor> on_device;
  on_device.reserve(parameters_.tensors.size());
  for (const TrainableTensor& tensor : parameters_.tensors) on_device.push_back(sum_of_squares(tensor.grad));
  const torch::Tensor on_host = at::stack(on_device).cpu();  // the one synchronisation of a step
  for (std::size_t i = 0; i < on_device.size(); ++i) {
    result[static_cast<std::size_t>(parameters_.tensors[i].group)] += on_host.const_data_ptr<double>()[i];
  }
  return result;
}

ClipResult AdamW::unscale_and_clip(double grad_scale, double max_norm, bool per_group, bool in_place) {
  torch::NoGradGuard no_grad;
  ClipResult result;
  result.by_group.assign(parameters_.groups.size(), 0.0);
  pending_scale_.assign(parameters_.groups.size(), 1.0);
  if (parameters_.tensors.empty()) return result;
  result.by_group = squares();
  double total = 0;
  for (const double square : result.by_group) total += square;
  result.norm = std::sqrt(total) * grad_scale;
  for (double& group : result.by_group) group = std::sqrt(group) * grad_scale;
  result.finite = std::isfinite(result.norm);
  if (!result.finite) return result;
  for (std::size_t g = 0; g < parameters_.groups.size(); ++g) {
    const double norm = per_group ? result.by_group[g] : result.norm;
    const double clip = max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
    result.clipped |= clip < 1.0;
    if (clip * grad_scale == 1.0) continue;
    if (kernels_ && !in_place) {
      pending_scale_[g] = clip * grad_scale;
      continue;
    }
    std::vector<torch::Tensor> grads;
    grads.reserve(parameters_.groups[g].members.size());
    for (const int member : parameters_.groups[g].members) {
      grads.push_back(parameters_.tensors[static_cast<std::size_t>(member)].grad);
    }
    at::_foreach_mul_(grads, clip * grad_scale);
  }
  return result;
}

std::vector<std::size_t> AdamW::own_members(const ParameterGroup& group) const {
  std::vector<std::size_t> own;
  for (const int member : group.members) {
    const auto i = static_cast<std::size_t>(member);
    if (parameters_.tensors[i].value.numel() == 0) continue;  // an adapter without a rank left
    if (!shards_ || shards_->mine(i)) own.push_back(i);
  }
  return own;
}

void AdamW::step(double factor, const JoinedAverages& averages) {
  TGV2_CHECK(averages.values.empty() || kernels_);
  torch::NoGradGuard no_grad;
  for (std::size_t g = 0; g < parameters_.groups.size(); ++g) {
    const ParameterGroup& group = parameters_.groups[g];
    if (kernels_) {
      step_in_one_pass(group, pending_scale_[g], group.learning_rate * factor, averages);
      pending_scale_[g] = 1.0;
      continue;
    }
    std::vector<torch::Tensor> values, grads, exp_avgs, exp_avg_sqs, steps;
    for (const std::size_t i : own_members(group)) {
      values.push_back(parameters_.tensors[i].value.detach());
      grads.push_back(parameters_.tensors[i].grad);
      exp_avgs.push_back(moments_[i].exp_avg);
      exp_avg_sqs.push_back(moments_[i].exp_avg_sq);
      moments_[i].step += 1;
      steps.push_back(moments_[i].step);
    }
    if (values.empty()) continue;
    at::_fused_adamw_(values, grads, exp_avgs, exp_avg_sqs, {}, steps, group.learning_rate * factor, options_.beta1,
                      options_.beta2, group.weight_decay, options_.eps, /*amsgrad=*/false, /*maximize=*/false);
  }
  if (!shards_) return;
  std::vector<torch::Tensor> values;
  values.reserve(parameters_.tensors.size());
  for (const TrainableTensor& tensor : parameters_.tensors) values.push_back(tensor.value);
  shards_->exchange(values);
}

void AdamW::step_in_one_pass(const ParameterGroup& group, double scale, double learning_rate,
                             const JoinedAverages& averages) {
  // Tensors of one group may have made different numbers of steps (some joined later): one pass for each number.
  std::map<std::int64_t, std::vector<AdamWTensor>> by_step;
  for (const std::size_t i : own_members(group)) {
    float& steps = *moments_[i].step.mutable_data_ptr<float>();  // on the CPU: see the constructor
    steps += 1;
    AdamWTensor t;
    t.parameter = parameters_.tensors[i].value.detach().mutable_data_ptr<float>();
    t.gradient = parameters_.tensors[i].grad.const_data_ptr<float>();
    t.exp_avg = moments_[i].exp_avg.mutable_data_ptr<float>();
    t.exp_avg_sq = moments_[i].exp_avg_sq.mutable_data_ptr<float>();
    t.width = parameters_.tensors[i].value.numel();
    if (!averages.values.empty()) t.ema = averages.values[i];
    t.learning_rate = learning_rate;
    t.weight_decay = group.weight_decay;
    by_step[static_cast<std::int64_t>(steps)].push_back(t);
  }
  for (const auto& [step, tensors] : by_step) {
    AdamWStep how;
    how.beta1 = options_.beta1;
    how.beta2 = options_.beta2;
    how.eps = options_.eps;
    how.step = step;
    how.gradient_scale = static_cast<float>(scale);
    how.ema_decay = averages.decay;
    kernels_->adamw(how, tensors.data(), static_cast<std::int64_t>(tensors.size()));
  }
}

AdamW::Moments AdamW::moments_of(std::size_t tensor) const {
  const Moments& own = moments_[tensor];
  if (!shards_) return own;
  const torch::Tensor& value = parameters_.tensors[tensor].value;
  const auto number = torch::zeros({}, value.options().dtype(torch::kFloat32));
  return {shards_->fetch(tensor, own.exp_avg, value), shards_->fetch(tensor, own.exp_avg_sq, value),
          shards_->fetch(tensor, own.step, number)};
}

Value AdamW::save_state(double next_factor) const {
  std::unordered_map<std::string, std::int64_t> index;
  for (std::size_t i = 0; i < parameters_.all_names.size(); ++i) {
    index[parameters_.all_names[i]] = static_cast<std::int64_t>(i);
  }
  const bool by_name = parameters_.stored_by_name();
  Value state = Value::dict();
  for (std::size_t i = 0; i < moments_.size(); ++i) {
    const Moments moments = moments_of(i);
    Value one = Value::dict();
    one.set("step", torch_to_tensor(moments.step));
    one.set("exp_avg", torch_to_tensor(moments.exp_avg));
    one.set("exp_avg_sq", torch_to_tensor(moments.exp_avg_sq));
    const std::string& name = parameters_.tensors[i].name;
    state.set(by_name ? Value(name) : Value(index.at(name)), std::move(one));
  }
  Value groups = Value::list();
  const bool single = parameters_.groups.size() == 1;
  for (const ParameterGroup& group : parameters_.groups) {
    Value one = Value::dict();
    one.set("lr", group.learning_rate * next_factor);
    one.set("betas", Value::tuple({options_.beta1, options_.beta2}));
    one.set("eps", options_.eps);
    one.set("weight_decay", group.weight_decay);
    for (const char* off : {"amsgrad", "maximize"}) one.set(off, false);
    one.set("foreach", Value());
    for (const char* off : {"capturable", "differentiable"}) one.set(off, false);
    one.set("fused", Value());
    one.set("decoupled_weight_decay", true);
    one.set("initial_lr", group.learning_rate);
    Value members = Value::list();
    if (single && !by_name) {
      // As the Python trainer: its one group lists every parameter, trained or not.
      for (std::size_t i = 0; i < parameters_.all_names.size(); ++i) members.push_back(i);
    } else {
      one.set("name", group.name);
      for (const int member : group.members) {
        const std::string& name = parameters_.tensors[static_cast<std::size_t>(member)].name;
        members.push_back(by_name ? Value(name) : Value(index.at(name)));
      }
    }
    one.set("params", std::move(members));
    groups.push_back(std::move(one));
  }
  Value result = Value::dict();
  result.set("state", std::move(state));
  result.set("param_groups", std::move(groups));
  return result;
}

void AdamW::load_state(const Value& state, const std::vector<std::string>& names, bool missing_start_anew) {
  std::unordered_map<std::string, const Value*> saved;
  for (const auto& [key, value] : state.at("state").entries("optimizer.state")) {
    if (key.is_string()) {  // split text rows and adapters are stored by name
      saved[key.as_string()] = &value;
      continue;
    }
    const std::int64_t index = key.as_int("optimizer.state key");
    if (index < 0 || index >= static_cast<std::int64_t>(names.size())) {
      throw Error("CKP007", concat("the optimizer state counts parameter ", index, ", the model has ", names.size()));
    }
    saved[names[static_cast<std::size_t>(index)]] = &value;
  }
  torch::NoGradGuard no_grad;
  for (int pass = 0; pass < 2; ++pass) {  // first compare everything, then copy
    for (std::size_t i = 0; i < moments_.size(); ++i) {
      const TrainableTensor& target = parameters_.tensors[i];
      const bool mine = !shards_ || shards_->mine(i);
      if (pass == 1 && mine &&
          moments_[i].exp_avg.sizes() != target.value.sizes()) {  // an adapter that was pruned since
        moments_[i].exp_avg = torch::zeros(target.value.sizes(), moments_[i].exp_avg.options());
        moments_[i].exp_avg_sq = torch::zeros_like(moments_[i].exp_avg);
      }
      const auto found = saved.find(target.name);
      if (found == saved.end()) {
        if (missing_start_anew) continue;
        throw Error("CKP007", "the optimizer state lacks a tensor that trains now")
            .at(target.name)
            .fix("--allow-change groups starts its moments anew");
      }
      const torch::Tensor exp_avg = fitting(*found->second, "exp_avg", target);
      const torch::Tensor exp_avg_sq = fitting(*found->second, "exp_avg_sq", target);
      const torch::Tensor step = tensor_to_torch(found->second->at("step").as_tensor());
      if (step.numel() != 1) throw Error("CKP007", "the optimizer's step is no single number").at(target.name);
      if (pass == 0 || !mine) continue;
      moments_[i].exp_avg.copy_(exp_avg);
      moments_[i].exp_avg_sq.copy_(exp_avg_sq);
      moments_[i].step.copy_(step.reshape({}));
    }
  }
}

void AdamW::keep(const std::vector<KeptIndices>& shrunk) {
  const torch::NoGradGuard no_grad;
  std::unordered_map<std::string, std::size_t> place;
  for (std::size_t i = 0; i < moments_.size(); ++i) place[parameters_.tensors[i].name] = i;
  for (const KeptIndices& one : shrunk) {
    Moments& moments = moments_[place.at(one.parameter)];
    if (!moments.exp_avg.defined()) continue;  // another rank's
    const torch::Tensor index = torch::tensor(one.kept, torch::kLong).to(moments.exp_avg.device());
    moments.exp_avg = moments.exp_avg.index_select(one.dimension, index);
    moments.exp_avg_sq = moments.exp_avg_sq.index_select(one.dimension, index);
  }
}

}  // namespace train_gpt_v2
