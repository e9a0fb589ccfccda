#include "train_gpt_v2/adapt/ewc.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/nll_loss.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/safetensors.h"
#include "train_gpt_v2/model/tensor_bridge.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int64_t kPilotSteps = 20;
constexpr double kGradientRatio = 0.3;
constexpr std::string_view kFormat = "train_gpt_v2 fisher 1";
constexpr std::string_view kWeightKey = "weights:";

// Of the first `rows` rows as fp32 numbers, whatever the tensor's type and device.
std::string checksum_of(const at::Tensor& tensor, std::int64_t rows) {
  const at::Tensor part = tensor.dim() == 0 ? tensor : tensor.narrow(0, 0, rows);
  const at::Tensor host = part.detach().to(at::kCPU, at::kFloat).contiguous();
  return std::to_string(
      crc32(std::as_bytes(std::span(host.const_data_ptr<float>(), static_cast<std::size_t>(host.numel())))));
}

Error misfit(const std::string& name, const std::string& problem) {
  return Error("EWC001", concat("the Fisher file does not fit ", name, ": ", problem));
}

std::int64_t counted(const SafetensorsFile& file, const std::string& path, const std::string& key) {
  const auto found = file.metadata.find(key);
  const std::string text = found == file.metadata.end() ? "" : found->second;
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos) {
    throw Error("EWC001", concat("the Fisher file lacks a valid number of ", key))
        .where(path)
        .detail("found: \"" + text + "\"");
  }
  return std::stoll(text);
}

}  // namespace

void write_fisher(const std::string& path, const Fisher& fisher) {
  SafetensorsFile file;
  file.metadata = {{"format", std::string(kFormat)},
                   {"tokens", std::to_string(fisher.tokens)},
                   {"samples", std::to_string(fisher.samples)}};
  for (const auto& [name, checksum] : fisher.weights) file.metadata[concat(kWeightKey, name)] = checksum;
  for (const auto& [name, value] : fisher.values) {
    file.tensors.emplace_back(name, torch_to_tensor(value.detach().to(at::kCPU, at::kFloat).contiguous()));
  }
  write_safetensors(path, file);
}

Fisher read_fisher(const std::string& path) {
  const SafetensorsFile file = read_safetensors(path);
  const auto format = file.metadata.find("format");
  if (format == file.metadata.end() || format->second != kFormat) {
    throw Error("EWC001", "not a Fisher file").where(path).fix("make one: train_gpt_v2 fisher");
  }
  Fisher fisher{counted(file, path, "tokens"), counted(file, path, "samples"), {}, {}};
  for (const auto& [key, text] : file.metadata) {
    if (starts_with(key, kWeightKey)) fisher.weights[key.substr(kWeightKey.size())] = text;
  }
  for (const auto& [name, tensor] : file.tensors) {
    if (tensor.dtype != DType::kFloat32 || !fisher.weights.contains(name)) {
      throw misfit(name, "not fp32, or without the checksum of its weights").where(path);
    }
    const at::Tensor value = tensor_to_torch(tensor);
    if (!value.isfinite().all().item<bool>() || (value.numel() > 0 && value.min().item<float>() < 0)) {
      throw misfit(name, "it holds negative or non-finite numbers").where(path);
    }
    fisher.values.emplace_back(name, value);
  }
  return fisher;
}

at::Tensor sample_labels(const at::Tensor& logits, RandomStream& stream) {
  const at::NoGradGuard no_grad;
  std::vector<double> draws(static_cast<std::size_t>(logits.size(0)));
  for (double& draw : draws) draw = stream.uniform();
  const at::Tensor cumulative = at::softmax(logits.detach().to(at::kDouble), 1).cumsum(1);
  const at::Tensor wanted = at::tensor(draws, at::kDouble).to(logits.device()).unsqueeze(1) *
                            cumulative.select(1, cumulative.size(1) - 1).unsqueeze(1);
  // The first class whose cumulative share exceeds the draw.
  return at::searchsorted(cumulative, wanted, /*out_int32=*/false, /*right=*/true)
      .squeeze(1)
      .clamp_max(logits.size(1) - 1);
}

FisherAccumulator::FisherAccumulator(std::vector<std::pair<std::string, at::Tensor>> parameters)
    : parameters_(std::move(parameters)) {
  for (const auto& [name, parameter] : parameters_) sums_.push_back(at::zeros_like(parameter.detach()));
}

void FisherAccumulator::add(std::int64_t tokens, std::int64_t samples) {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    at::Tensor& grad = parameters_[i].second.mutable_grad();
    if (!grad.defined()) continue;
    sums_[i].addcmul_(grad, grad);
    grad.reset();
  }
  tokens_ += tokens;
  samples_ += samples;
}

Fisher FisherAccumulator::finish() const {
  if (tokens_ == 0)
    throw Error("EWC001", "no scored token: the Fisher information would be empty").fix("check the manifest");
  Fisher fisher{tokens_, samples_, {}, {}};
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const auto& [name, parameter] = parameters_[i];
    fisher.values.emplace_back(name, sums_[i] / static_cast<double>(tokens_));
    fisher.weights[name] = checksum_of(parameter, parameter.dim() == 0 ? 1 : parameter.size(0));
  }
  return fisher;
}

std::size_t FisherAccumulator::bytes() const {
  std::size_t total = 0;
  for (const at::Tensor& sum : sums_) total += sum.nbytes();
  return total;
}

void backward_sampled_likelihood(UnifiedVoice& model, const ModelInputs& inputs, double text_weight, double mel_weight,
                                 RandomStream& stream) {
  const at::Tensor rows = model.run_blocks(model.embed(inputs), inputs.segments);
  const auto likelihood = [&](const Dense& head, const at::Tensor& scored_rows) {
    const at::Tensor logits = head.forward(model.final_states(rows.index_select(0, scored_rows)));
    const at::Tensor log_p =
        at::log_softmax(logits.to(logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat), 1);
    return -at::nll_loss(log_p, sample_labels(logits, stream), {}, /*reduction=*/2);
  };
  const at::Tensor text = likelihood(*model.text_head, inputs.text_scored_rows);
  const at::Tensor mel = likelihood(*model.mel_head, inputs.mel_scored_rows);
  (text * text_weight + mel * mel_weight).backward();
}

Ewc::Ewc(const EwcOptions& options, const Fisher& fisher, std::vector<std::pair<std::string, at::Tensor>> direct,
         AdapterSet* set, bool weights_hold_effective)
    : options_(options), set_(set), weights_hold_effective_(weights_hold_effective), lambda_(options.lambda) {
  if (set_) {
    for (std::size_t i = 0; i < set_->adapters().size(); ++i) {
      Adapter& adapter = set_->adapters()[i];
      Term term;
      term.name = adapter.spec().module + ".weight";
      term.value = set_->weights()[i];
      term.anchor = adapter.base();
      term.adapter = &adapter;
      protect(fisher, std::move(term));
    }
  }
  for (std::size_t i = 0; i < direct.size(); ++i) {
    Term term;
    term.name = direct[i].first;
    term.value = direct[i].second;
    term.direct = static_cast<int>(i);
    protect(fisher, std::move(term));
  }
  if (terms_.empty()) {
    throw Error("EWC001", "the Fisher file names nothing that trains in this run")
        .fix("measure it with the configuration of this run: train_gpt_v2 fisher");
  }
}

void Ewc::protect(const Fisher& fisher, Term term) {
  const auto found = std::find_if(fisher.values.begin(), fisher.values.end(),
                                  [&](const auto& entry) { return entry.first == term.name; });
  if (found == fisher.values.end()) return;
  const at::NoGradGuard no_grad;
  const at::Tensor& measured = found->second;
  const at::Tensor value = term.value.detach();
  const bool more_rows = value.dim() > 0 && measured.dim() == value.dim() && measured.size(0) < value.size(0) &&
                         measured.sizes().slice(1) == value.sizes().slice(1) && !term.adapter;
  if (measured.sizes() != value.sizes() && !more_rows) {
    throw misfit(term.name,
                 concat("it is ", shape_text(measured.sizes()), ", the model's is ", shape_text(value.sizes())))
        .fix("measure it again on this model: train_gpt_v2 fisher");
  }
  term.fisher =
      at::zeros_like(value, value.options().dtype(value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
  term.rows = value.dim() == 0 ? 1 : measured.size(0);
  if (more_rows) {
    // The last row measured is the base's spare one: no token, and opening a vocabulary moves it (model/vocabulary.h).
    term.fisher.narrow(0, 0, term.rows - 1).copy_(measured.narrow(0, 0, term.rows - 1));
  } else {
    term.fisher.copy_(measured);
  }
  term.checksum = fisher.weights.at(term.name);
  if (!term.anchor.defined()) term.anchor = value.clone();
  terms_.push_back(std::move(term));
}

void Ewc::check_anchors() const {
  for (const Term& term : terms_) {
    if (checksum_of(term.anchor, term.rows) == term.checksum) continue;
    if (const std::int64_t last = term.anchor.size(0) - 1; last >= term.rows) {  // the spare row went to the end
      const at::Tensor moved = at::cat({term.anchor.narrow(0, 0, term.rows - 1), term.anchor.narrow(0, last, 1)});
      if (checksum_of(moved, term.rows) == term.checksum) continue;
    }
    throw misfit(term.name, "it was measured on other weights than this run starts from")
        .fix("start from the weights the Fisher file was measured on, or measure it again");
  }
}

at::Tensor Ewc::distance(const Term& term) const {
  if (!term.adapter || weights_hold_effective_) return term.value.detach() - term.anchor;
  at::Tensor effective = at::empty_like(term.anchor);
  term.adapter->write_effective(effective);
  return effective.sub_(term.anchor);
}

void Ewc::choose_lambda(double loss_scale) {
  if (++pilot_steps_ < kPilotSteps) return;
  double task = 0;
  for (const Term& term : terms_) {
    if (term.value.grad().defined()) task += std::pow(term.value.grad().norm().item<double>() / loss_scale, 2);
  }
  const double penalty = measure().penalty_norm;  // with λ = 1
  const double lambda = kGradientRatio * std::sqrt(task) / penalty;
  if (!std::isfinite(lambda) || lambda <= 0) return;  // nothing moved yet, or a step that will be skipped: next one
  lambda_ = lambda;
  log_info("ewc", "lambda ", lambda, ": the penalty's gradient is ", kGradientRatio, " of the task's over ",
           terms_.size(), " protected tensors");
}

void Ewc::add_gradient(double loss_scale) {
  const at::NoGradGuard no_grad;
  if (!lambda_) choose_lambda(loss_scale);
  if (!lambda_) return;
  for (const Term& term : terms_) {
    if (!term.adapter && options_.mode == "proximal") continue;
    const at::Tensor pull = distance(term).mul_(term.fisher).mul_(*lambda_ * loss_scale);
    if (term.adapter && !weights_hold_effective_) {
      term.adapter->push_gradient(pull);
      continue;
    }
    at::Tensor& grad = term.value.mutable_grad();
    if (grad.defined()) {
      grad.add_(pull);
    } else {
      grad = pull;
    }
  }
}

void Ewc::proximal_step(const std::vector<double>& rates) {
  if (options_.mode != "proximal" || !lambda_) return;
  const at::NoGradGuard no_grad;
  for (const Term& term : terms_) {
    if (term.adapter) continue;
    TGV2_CHECK(static_cast<std::size_t>(term.direct) < rates.size());
    const at::Tensor weight = term.fisher * (rates[static_cast<std::size_t>(term.direct)] * *lambda_);
    // θ + (θ* − θ)·w/(1 + w): the same number as (θ + wθ*)/(1 + w), and exactly θ where w = 0.
    term.value.detach().add_((term.anchor - term.value.detach()).mul_(weight / (weight + 1)));
  }
}

EwcReport Ewc::measure() const {
  const at::NoGradGuard no_grad;
  EwcReport report;
  report.lambda = lambda_;
  const double lambda = lambda_.value_or(1);
  for (const Term& term : terms_) {
    const at::Tensor apart = distance(term), pull = apart * term.fisher;
    report.penalty += lambda / 2 * (apart * pull).sum(at::kDouble).item<double>();
    report.penalty_norm += std::pow(lambda * pull.norm().item<double>(), 2);
    report.drift += std::pow(apart.norm().item<double>(), 2);
  }
  report.penalty_norm = std::sqrt(report.penalty_norm);
  report.drift = std::sqrt(report.drift);
  return report;
}

std::size_t Ewc::bytes() const {
  std::size_t total = 0;
  for (const Term& term : terms_) total += term.fisher.nbytes() + (term.adapter ? 0 : term.anchor.nbytes());
  return total;
}

std::vector<std::string> Ewc::names() const {
  std::vector<std::string> list;
  for (const Term& term : terms_) list.push_back(term.name);
  return list;
}

Value Ewc::save_state() const {
  Value state = Value::dict(), anchors = Value::dict();
  for (const Term& term : terms_) {
    if (!term.adapter) anchors.set(term.name, torch_to_tensor(term.anchor.to(at::kCPU)));
  }
  state.set("lambda", lambda_ ? Value(*lambda_) : Value());
  state.set("pilot_steps", pilot_steps_);
  state.set("anchors", anchors);
  return state;
}

void Ewc::load_state(const Value& state) {
  const Value& lambda = state.at("lambda");
  const std::int64_t pilot_steps = state.at("pilot_steps").as_int("ewc.pilot_steps");
  std::vector<at::Tensor> anchors;
  for (const Term& term : terms_) {
    if (term.adapter) {
      anchors.push_back(term.anchor);
      continue;
    }
    const at::Tensor saved = tensor_to_torch(state.at("anchors").at(term.name).as_tensor("ewc.anchors." + term.name));
    if (saved.sizes() != term.anchor.sizes()) throw misfit(term.name, "the checkpoint's anchor has another shape");
    anchors.push_back(saved.to(term.anchor.options(), false, /*copy=*/true));
  }
  for (std::size_t i = 0; i < terms_.size(); ++i) terms_[i].anchor = anchors[i];
  if (!options_.lambda) lambda_ = lambda.is_none() ? std::nullopt : std::optional(lambda.as_double("ewc.lambda"));
  pilot_steps_ = pilot_steps;
}

}  // namespace train_gpt_v2
