#include "train_gpt_v2/adapt/adapter.h"

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <utility>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/tensor.h"
#include "train_gpt_v2/model/initialise.h"

namespace train_gpt_v2 {
namespace {

constexpr double kMinNorm = 1e-6;  // rows of zeros must be able to learn (§1.6)
// What a magnitude of exactly zero counts as: push_products() finds its gradient through W', where zero hides it.
constexpr double kLeastMagnitude = 1e-15;

constexpr std::pair<AdapterKind, std::string_view> kKinds[] = {{AdapterKind::kLora, "lora"},
                                                               {AdapterKind::kDora, "dora"},
                                                               {AdapterKind::kAdalora, "adalora"},
                                                               {AdapterKind::kDoraAdalora, "dora_adalora"}};

at::Tensor leaf(at::IntArrayRef shape, const at::TensorOptions& options) {
  return at::zeros(shape, options).set_requires_grad(true);
}

void add_to_grad(const at::Tensor& parameter, const at::Tensor& gradient) {
  at::Tensor& grad = parameter.mutable_grad();
  if (grad.defined()) {
    grad.add_(gradient);
  } else {
    grad = gradient.contiguous();
  }
}

void require_shape(const at::Tensor& tensor, at::IntArrayRef expected, const std::string& name) {
  if (tensor.defined() && tensor.sizes() == expected) return;
  throw Error("PFT002", concat("adapter tensor ", name, " does not fit its module"))
      .detail(concat("found ", tensor.defined() ? shape_text(tensor.sizes()) : "nothing", ", needed ",
                     shape_text(expected)))
      .fix("use an adapter that was trained on this model");
}

}  // namespace

std::string_view adapter_kind_name(AdapterKind kind) {
  for (const auto& [known, name] : kKinds) {
    if (known == kind) return name;
  }
  check_failed("known adapter kind", __FILE__, __LINE__);
}

AdapterKind parse_adapter_kind(std::string_view name) {
  for (const auto& [kind, known] : kKinds) {
    if (known == name) return kind;
  }
  throw Error("PFT001", concat("peft.method \"", name, "\" is unknown"))
      .fix("use \"lora\", \"dora\", \"adalora\" or \"dora_adalora\"");
}

bool has_magnitude(AdapterKind kind) {
  return kind == AdapterKind::kDora || kind == AdapterKind::kDoraAdalora;
}
bool is_adaptive(AdapterKind kind) {
  return kind == AdapterKind::kAdalora || kind == AdapterKind::kDoraAdalora;
}

double AdapterSpec::scale() const {
  const auto ranks = static_cast<double>(rank);
  if (is_adaptive(kind)) return (alpha > 0 ? alpha : ranks) / (ranks + 1e-5);
  return rslora ? alpha / std::sqrt(ranks) : alpha / ranks;
}

Adapter::Adapter(AdapterSpec spec, const at::Tensor& base) : spec_(std::move(spec)) {
  TGV2_CHECK(base.dim() == 2 && spec_.rank >= 1);
  const at::NoGradGuard no_grad;
  const bool wide = base.scalar_type() == at::kDouble;
  base_ = base.detach().to(wide ? at::kDouble : at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous();
  const at::TensorOptions options = base_.options();
  a_ = leaf({spec_.rank, inputs()}, options);
  b_ = leaf({outputs(), spec_.rank}, options);
  if (is_adaptive(spec_.kind)) lambda_ = leaf({spec_.rank, 1}, options);
  if (!has_magnitude(spec_.kind)) return;
  magnitude_ = leaf({outputs()}, options);
  base_norm_squared_ = base_view().to(at::kDouble).square().sum(1);
}

void Adapter::initialise(std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  const std::string name_a = parameter_name(AdapterRole::kA), name_b = parameter_name(AdapterRole::kB);
  if (is_adaptive(spec_.kind)) {
    fill_normal(a_, 0.02, seed, name_a);
    fill_normal(b_, 0.02, seed, name_b);
    lambda_.zero_();
  } else if (spec_.embedding) {
    a_.zero_();
    fill_normal(b_, 1.0, seed, name_b);
  } else {
    fill_uniform(a_, 1.0 / std::sqrt(static_cast<double>(inputs())), seed, name_a);
    b_.zero_();
  }
  if (!has_magnitude(spec_.kind)) return;
  magnitude_.fill_(1);
  refresh();  // D is zero here, so the norm is that of W0
  magnitude_.copy_(norm_);
  refresh();
}

void Adapter::set(const at::Tensor& a, const at::Tensor& b, const at::Tensor& lambda, const at::Tensor& magnitude) {
  const at::NoGradGuard no_grad;
  TGV2_CHECK(a.defined() && a.dim() == 2);
  const std::int64_t ranks = a.size(0);
  require_shape(a, {ranks, inputs()}, parameter_name(AdapterRole::kA));
  require_shape(b, {outputs(), ranks}, parameter_name(AdapterRole::kB));
  if (lambda_.defined()) require_shape(lambda, {ranks, 1}, parameter_name(AdapterRole::kLambda));
  if (magnitude_.defined() && magnitude.defined()) {
    require_shape(magnitude, {outputs()}, parameter_name(AdapterRole::kMagnitude));
  }
  const auto replace = [](at::Tensor& parameter, const at::Tensor& value) {
    parameter.mutable_grad().reset();
    parameter.set_data(value.detach().to(parameter.options().requires_grad(false), false, /*copy=*/true).contiguous());
  };
  replace(a_, a);
  replace(b_, b);
  if (lambda_.defined()) replace(lambda_, lambda);
  if (magnitude_.defined() && magnitude.defined()) replace(magnitude_, magnitude);
  refresh();
}

std::int64_t Adapter::parameter_count() const {
  std::int64_t count = 0;
  for (const AdapterParameter& parameter : parameters()) count += parameter.tensor.numel();
  return count;
}

std::int64_t Adapter::triplet_cost() const {
  return inputs() + outputs() + (lambda_.defined() ? 1 : 0);
}

std::string Adapter::parameter_name(AdapterRole role) const {
  switch (role) {
    case AdapterRole::kA:
      return spec_.module + (spec_.embedding ? ".lora_embedding_A" : lambda_.defined() ? ".lora_A" : ".lora_A.weight");
    case AdapterRole::kB:
      return spec_.module + (spec_.embedding ? ".lora_embedding_B" : lambda_.defined() ? ".lora_B" : ".lora_B.weight");
    case AdapterRole::kLambda:
      return spec_.module + ".lora_E";
    case AdapterRole::kMagnitude:
      return spec_.module + ".lora_magnitude_vector";
  }
  check_failed("known adapter role", __FILE__, __LINE__);
}

std::vector<AdapterParameter> Adapter::parameters() const {
  std::vector<AdapterParameter> list;
  const auto add = [&](AdapterRole role, const at::Tensor& tensor) {
    if (tensor.defined()) list.push_back({parameter_name(role), role, tensor});
  };
  add(AdapterRole::kA, a_);
  add(AdapterRole::kLambda, lambda_);
  add(AdapterRole::kB, b_);
  add(AdapterRole::kMagnitude, magnitude_);
  return list;
}

at::Tensor Adapter::logical(const at::Tensor& stored) const {
  return spec_.layout == WeightLayout::kInOut ? stored.t() : stored;
}

at::Tensor Adapter::left_factor() const {
  return lambda_.defined() ? b_ * lambda_.t() : b_;
}

at::Tensor Adapter::nonzero_magnitude() const {
  const at::Tensor m = magnitude_.detach();
  return m.masked_fill(m == 0, kLeastMagnitude);
}

at::Tensor Adapter::gained_b() const {
  const at::Tensor b = b_.detach();
  return magnitude_.defined() ? b * gain_.unsqueeze(1) : b;
}

void Adapter::refresh() {
  if (!magnitude_.defined()) return;
  const at::NoGradGuard no_grad;
  const at::NoTF32Guard full_precision;
  at::Tensor squared = base_norm_squared_;
  if (rank() > 0) {
    const double s = spec_.scale();
    const at::Tensor left = left_factor(), wide_left = left.to(at::kDouble);
    const at::Tensor cross = at::mm(base_view(), a_.t());
    const at::Tensor gram = at::mm(left, at::mm(a_, a_.t()));
    squared = squared + (2 * s) * (cross.to(at::kDouble) * wide_left).sum(1) +
              (s * s) * (gram.to(at::kDouble) * wide_left).sum(1);
  }
  norm_ = squared.clamp_min(0).sqrt().clamp_min(kMinNorm);
  gain_ = nonzero_magnitude() / norm_.to(magnitude_.scalar_type());  // in one type: an untouched m gives exactly 1
}

void Adapter::write_effective(at::Tensor target) const {
  const at::NoGradGuard no_grad;
  const at::NoTF32Guard full_precision;
  TGV2_CHECK(target.sizes() == base_.sizes());
  at::Tensor wide = target.detach();
  if (target.scalar_type() != base_.scalar_type()) wide = at::empty(base_.sizes(), base_.options());
  at::Tensor view = logical(wide);
  if (rank() > 0) {
    at::addmm_out(view, base_view(), left_factor(), a_, 1, spec_.scale());
  } else {
    view.copy_(base_view());
  }
  if (magnitude_.defined()) view.mul_(gain_.unsqueeze(1));
  if (!wide.is_alias_of(target)) target.detach().copy_(wide);
}

at::Tensor Adapter::merged(double share) const {
  const at::NoGradGuard no_grad;
  at::Tensor weight = at::empty(base_.sizes(), base_.options());
  write_effective(weight);
  if (share != 1) weight.sub_(base_).mul_(share).add_(base_);
  if (!weight.isfinite().all().item<bool>()) {
    throw Error("NUM010", concat("the merged weight of ", spec_.module, " holds non-finite numbers"))
        .fix("merge an earlier checkpoint");
  }
  return weight;
}

at::Tensor Adapter::unmerged(const at::Tensor& effective) const {
  const at::NoGradGuard no_grad;
  const at::NoTF32Guard full_precision;
  at::Tensor view = logical(effective.detach().to(base_.scalar_type(), false, /*copy=*/true));
  if (magnitude_.defined()) view.div_(gain_.unsqueeze(1));
  if (rank() > 0) view.addmm_(left_factor(), a_, 1, -spec_.scale());
  return logical(view);
}

void Adapter::push_gradient(const at::Tensor& weight_grad) {
  const at::NoGradGuard no_grad;
  const at::NoTF32Guard full_precision;
  TGV2_CHECK(weight_grad.sizes() == base_.sizes());
  const at::Tensor grad = logical(weight_grad.detach().to(base_.scalar_type()));
  const at::Tensor with_a = at::mm(grad, a_.t());  // G·Aᵀ [out,r]
  if (magnitude_.defined()) {
    // Σ_i G∘V without forming V: the part of D is Σ_k (G·Aᵀ)∘left.
    at::Tensor sum = (grad * base_view()).sum(1, false, at::kDouble);
    if (rank() > 0) sum.add_((with_a * left_factor()).sum(1, false, at::kDouble), spec_.scale());
    add_to_grad(magnitude_, (sum / norm_).to(base_.scalar_type()));
  }
  if (rank() > 0) push_factors(with_a, at::mm(gained_b().t(), grad));
}

void Adapter::push_products(const GradientProducts& products) {
  const at::NoGradGuard no_grad;
  if (magnitude_.defined()) {
    add_to_grad(magnitude_, products.columns / nonzero_magnitude());  // Σ_i G∘V over n, with W' = V·m/n
  }
  if (rank() > 0) push_factors(products.with_a.t(), products.with_b);
}

// G·Aᵀ [out,r] and (g⊙B)ᵀ·G [r,in].
void Adapter::push_factors(const at::Tensor& with_a, const at::Tensor& with_b) {
  const double s = spec_.scale();
  at::Tensor grad_b = with_a * s;  // s·(g⊙G)Aᵀ
  if (magnitude_.defined()) grad_b.mul_(gain_.unsqueeze(1));
  const at::Tensor grad_a = with_b * s;  // s·(g⊙B)ᵀG
  if (!lambda_.defined()) {
    add_to_grad(a_, grad_a);
    add_to_grad(b_, grad_b);
    return;
  }
  add_to_grad(a_, grad_a * lambda_);
  add_to_grad(lambda_, (grad_b * b_).sum(0).unsqueeze(1));
  add_to_grad(b_, grad_b * lambda_.t());
}

at::Tensor Adapter::forward(const at::Tensor& y0, const at::Tensor& dropped_x) const {
  const at::Tensor x = dropped_x.to(a_.scalar_type());
  at::Tensor low = at::linear(x, a_);
  if (lambda_.defined()) low = low * lambda_.t();
  at::Tensor update = at::linear(low, b_) * spec_.scale();
  if (magnitude_.defined()) {
    // (m − n)/n, not m/n − 1: near one the latter loses its digits (§1.3).
    const at::Tensor norm = norm_.to(magnitude_.scalar_type());
    update = update * (magnitude_ / norm) + at::linear(x, base_view()) * ((magnitude_ - norm) / norm);
  }
  return (y0 + update).to(y0.scalar_type());
}

std::pair<at::Tensor, at::Tensor> Adapter::plain_factors() const {
  const at::NoGradGuard no_grad;
  if (!lambda_.defined()) return {a_.detach(), b_.detach()};
  if (rank() == 0) return {at::zeros({1, inputs()}, base_.options()), at::zeros({outputs(), 1}, base_.options())};
  return {a_.detach() * lambda_.detach(), b_.detach() * (spec_.scale() / 2)};
}

void Adapter::compact(const std::vector<std::int64_t>& kept) {
  const at::NoGradGuard no_grad;
  const at::Tensor index = at::tensor(kept, at::kLong).to(a_.device());
  const auto shrink = [&](at::Tensor& parameter, std::int64_t dimension) {
    parameter.mutable_grad().reset();  // a gradient of the old shape would be refused by set_data's users
    parameter.set_data(parameter.detach().index_select(dimension, index));
  };
  shrink(a_, 0);
  shrink(b_, 1);
  if (lambda_.defined()) shrink(lambda_, 0);
  refresh();
}

}  // namespace train_gpt_v2
