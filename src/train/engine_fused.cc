#include <ATen/Parallel.h>

#include <algorithm>
#include <map>
#include <utility>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/fused_gpt.h"
#include "train_gpt_v2/train/device.h"
#include "train_gpt_v2/train/engine.h"

namespace train_gpt_v2 {
namespace {

// The block matrices of which dL/dW' is not computed, only what their adapters' factors need of it: at rank 16 a
// quarter of the work. On a GPU thin products are bound by memory and win little; EWC adds to dL/dW' and compares with
// it; tables and heads are rarely adapted.
class ThinGradients {
 public:
  ThinGradients(AdapterSet* adapters, const Options& options, at::Device device) : adapters_(adapters) {
    if (!adapters || options.ewc.enabled || device.is_cuda()) return;
    for (std::size_t i = 0; i < adapters->adapters().size(); ++i) {
      const Adapter& adapter = adapters->adapters()[i];
      if (!starts_with(adapter.spec().module, "gpt.h.")) continue;
      adapters->leave_products(i);
      Site& site = sites_[adapter.spec().module + ".weight"];
      site.index = i;
      place(site, adapter.b().detach());  // the gains may not be known yet
    }
  }

  // After AdapterSet::apply().
  void refresh() {
    for (auto& [key, site] : sites_) place(site, adapters_->adapters()[site.index].gained_b());
  }

  const FusedThin* find(const std::string& key) const {
    const auto found = sites_.find(key);
    return found == sites_.end() ? nullptr : &found->second.thin;
  }

 private:
  struct Site {
    std::size_t index = 0;
    at::Tensor b;
    FusedThin thin;
  };

  void place(Site& site, const at::Tensor& b) {
    const Adapter& adapter = adapters_->adapters()[site.index];
    const GradientProducts& products = adapters_->products(site.index);
    const auto data = [](const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr<float>() : nullptr; };
    site.b = b;
    site.thin = {adapter.rank(),
                 adapter.a().const_data_ptr<float>(),
                 b.const_data_ptr<float>(),
                 data(products.with_a),
                 data(products.with_b),
                 data(products.columns)};
  }

  AdapterSet* adapters_;
  std::map<std::string, Site> sites_;
};

class FusedEngine final : public Engine {
 public:
  FusedEngine(UnifiedVoice& model, const Options& options, bool bf16, AdapterSet* adapters)
      : options_(options.model),
        adapters_(adapters),
        text_padding_(options.train.layout == "padded"),
        thin_(adapters, options, model.device()),
        fused_(options.model, pointers(model), how(model.device(), options, bf16),
               device_kernels(model.device(), options.train.tf32)) {}

  std::string name() const override { return "fused"; }
  void begin_window() override { fused_.begin_window(); }

  LossSums forward_backward(const Batch& batch, const DropoutKey& key, double text_scale, double mel_scale) override {
    return sums(fused_.forward_backward(batch, key, text_scale, mel_scale), batch);
  }

  void on_gradients(StageListener listener) override { fused_.on_gradients(std::move(listener)); }

  LossSums evaluate(const Batch& batch, bool per_sample) override {
    std::vector<FusedLosses> samples;
    LossSums out = sums(fused_.evaluate(batch, per_sample ? &samples : nullptr), batch);
    for (const FusedLosses& sample : samples) {
      out.samples.push_back({sample.text_loss_sum, sample.mel_loss_sum, sample.mel_top1});
    }
    return out;
  }

  void parameters_changed() override {
    if (adapters_) adapters_->apply();
    thin_.refresh();
    fused_.refresh_weights();
  }

 private:
  FusedParameters pointers(UnifiedVoice& model) const {
    const auto needed = FusedGpt::required_parameters(options_);
    FusedParameters parameters;
    for (const auto& item : model.named_parameters()) {
      if (!needed.count(item.key())) continue;
      const torch::Tensor& value = item.value();
      TGV2_CHECK(value.is_contiguous() && value.scalar_type() == at::kFloat);
      float* grad = value.grad().defined() ? value.grad().mutable_data_ptr<float>() : nullptr;
      parameters[item.key()] = {value.const_data_ptr<float>(), grad, value.numel(), thin_.find(item.key())};
    }
    return parameters;
  }

  static FusedOptions how(at::Device device, const Options& options, bool bf16) {
    FusedOptions fused;
    if (device.is_cuda()) {
      fused.head_rows = kGpuHeadRows;
      fused.whole_classes = true;
      fused.growth = 1.0625;
    }
    fused.bf16 = bf16;
    fused.text_padding = options.train.layout == "padded";
    fused.threads = at::get_num_threads();
    return fused;
  }

  LossSums sums(const FusedLosses& losses, const Batch& batch) const {
    LossSums out;
    out.values = torch::tensor({losses.text_loss_sum, losses.mel_loss_sum, static_cast<double>(losses.mel_top1),
                                static_cast<double>(losses.mel_top5)},
                               at::kDouble);
    out.text_tokens = losses.text_tokens;
    out.mel_tokens = losses.mel_tokens;
    out.positions = out.padded_positions = real_positions(batch, options_);
    if (text_padding_) {  // the texts are as long as the longest; behind the codes nothing is computed
      std::int64_t longest = 0;
      for (std::int64_t i = 0; i < batch.count(); ++i) longest = std::max(longest, batch.text_length(i));
      out.padded_positions += longest * batch.count() - static_cast<std::int64_t>(batch.text.size());
    }
    return out;
  }

  static constexpr std::int64_t kGpuHeadRows = 8192;  // large products; 0.4 GB of bf16 logits for 24,000 classes

  ModelOptions options_;
  AdapterSet* adapters_;
  bool text_padding_;
  ThinGradients thin_;  // fused_ reads it
  FusedGpt fused_;
};

// Why the fused engine cannot run this configuration; "" when it can.
std::string fused_obstacle(const Options& options, at::Device device, at::ScalarType compute) {
  if (device.is_cuda() && !device_kernels_take(device, options.model)) {
    return "its kernels need compute capability 8.0, a build with nvcc, and a width of whole eights up to 8192";
  }
  if (compute != at::kFloat && compute != at::kBFloat16) return "it computes in fp32 or bf16";
  if (options.model.conditioning != "precomputed") return "it needs precomputed conditioning";
  if (options.peft.enabled() && options.peft.lora_dropout > 0) {
    return "it reads adapted weights, and dropout acts between weight and adapter (peft.lora_dropout is set)";
  }
  if (options.train.activation_checkpointing > 0)
    return "it keeps its activations (train.activation_checkpointing is set)";
  return "";
}

}  // namespace

std::unique_ptr<Engine> make_engine(UnifiedVoice& model, const Options& options, at::ScalarType compute,
                                    std::string& why, AdapterSet* adapters) {
  const std::string obstacle = fused_obstacle(options, model.device(), compute);
  const std::string& wanted = options.train.engine;
  if (wanted == "fused" && !obstacle.empty()) {
    throw Error("CFG017", "train.engine \"fused\" cannot run this configuration: " + obstacle)
        .fix("use train.engine \"auto\" or \"modules\"");
  }
  if (wanted == "modules" || !obstacle.empty()) {
    why = wanted == "modules" ? "as asked" : "the fused one cannot: " + obstacle;
    return make_modules_engine(model, options, compute, adapters);
  }
  why = wanted == "fused" ? "as asked" : "precomputed conditioning";
  return std::make_unique<FusedEngine>(model, options, compute == at::kBFloat16, adapters);
}

}  // namespace train_gpt_v2
