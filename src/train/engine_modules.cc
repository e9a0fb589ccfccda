#include <ATen/Context.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <utility>

#include "train_gpt_v2/adapt/hooks.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/model/autocast.h"
#include "train_gpt_v2/model/inputs.h"
#include "train_gpt_v2/train/engine.h"

#ifdef TGV2_CUDA_API
#include <ATen/cuda/CUDAContext.h>
#endif

namespace train_gpt_v2 {
namespace {

// Follows autograd through a backward pass: a stage is final when every leaf of it, and of those before it, has got its
// gradient. A leaf that gets none leaves its stage open.
class StageWatch {
 public:
  StageWatch(const UnifiedVoice& model, const ModelOptions& options, StageListener listener)
      : listener_(std::move(listener)), leaves_(static_cast<std::size_t>(gradient_stages(options)), 0) {
    for (const auto& item : model.named_parameters()) {
      if (!item.value().requires_grad()) continue;
      const auto stage = static_cast<std::size_t>(gradient_stage(options, item.key()));
      ++leaves_[stage];
      const auto accumulator = torch::autograd::impl::grad_accumulator(item.value());
      keys_.push_back(accumulator->add_post_hook(std::make_unique<Hook>(*this, stage)));
      accumulators_.push_back(accumulator);
    }
  }
  ~StageWatch() {
    for (std::size_t i = 0; i < keys_.size(); ++i) accumulators_[i]->del_post_hook(keys_[i]);
  }
  StageWatch(const StageWatch&) = delete;
  StageWatch& operator=(const StageWatch&) = delete;

  void begin() {
    missing_ = leaves_;
    next_ = 0;
  }

 private:
  struct Hook final : torch::autograd::FunctionPostHook {
    Hook(StageWatch& of, std::size_t which) : watch(of), stage(which) {}
    torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                              const torch::autograd::variable_list&) override {
      watch.added(stage);
      return outputs;
    }
    StageWatch& watch;
    std::size_t stage;
  };

  void added(std::size_t stage) {
    --missing_[stage];
    const std::size_t before = next_;
    while (next_ < missing_.size() && missing_[next_] == 0) ++next_;
    if (next_ > before) listener_(static_cast<std::int64_t>(next_) - 1);
  }

  StageListener listener_;
  std::vector<std::int64_t> leaves_, missing_;                        // by stage
  std::size_t next_ = 0;                                              // the first stage that is not final
  std::vector<std::shared_ptr<torch::autograd::Node>> accumulators_;  // carry the hooks as long as they live
  std::vector<std::uintptr_t> keys_;
};

class ModulesEngine final : public Engine {
 public:
  ModulesEngine(UnifiedVoice& model, const Options& options, at::ScalarType compute, AdapterSet* adapters)
      : model_(model),
        adapters_(adapters),
        model_options_(options.model),
        layout_(parse_layout(options.train.layout)),
        checkpoint_every_(options.train.activation_checkpointing),
        compute_(compute) {
    if (adapters && options.peft.lora_dropout > 0) {
      hooks_ = std::make_unique<AdapterHooks>(model, *adapters, options.peft.lora_dropout);
    }
  }

  std::string name() const override { return "modules"; }

  void parameters_changed() override {
    if (hooks_) {
      hooks_->evaluate();
    } else if (adapters_) {
      adapters_->apply();
    }
    hooks_training_ = false;
  }

  void begin_window() override {
    const torch::NoGradGuard no_grad;
    for (const torch::Tensor& parameter : model_.parameters()) {
      if (parameter.grad().defined()) parameter.mutable_grad().zero_();
    }
  }

  LossSums forward_backward(const Batch& batch, const DropoutKey& key, double text_scale, double mel_scale) override {
    model_.train();
    const ModelInputs inputs = assemble_inputs(batch, model_options_, layout_, model_.device(), model_.dtype());
    if (hooks_) {
      if (!hooks_training_) hooks_->train();
      hooks_training_ = true;
      hooks_->begin(key, inputs.segments);
    }
    ForwardOptions how;
    how.dropout = make_dropout(key, model_options_.dropout);
    how.checkpoint_every = checkpoint_every_;
    ForwardResult result;
    {
      const AutocastScope autocast(model_.device().type(), compute_);
      result = model_.forward(inputs, how);
    }
    if (watch_) watch_->begin();
    (result.text_loss_sum * text_scale + result.mel_loss_sum * mel_scale).backward();
    return sums(result, inputs, batch);
  }

  void on_gradients(StageListener listener) override {
    watch_ = listener ? std::make_unique<StageWatch>(model_, model_options_, std::move(listener)) : nullptr;
  }

  LossSums evaluate(const Batch& batch, bool per_sample) override {
    const torch::NoGradGuard no_grad;
    model_.eval();
    TGV2_CHECK(!hooks_training_);
    const ModelInputs inputs = assemble_inputs(batch, model_options_, layout_, model_.device(), model_.dtype());
    ForwardOptions how;
    how.detailed = true;
    const AutocastScope autocast(model_.device().type(), compute_);
    const ForwardResult result = model_.forward(inputs, how);
    LossSums out = sums(result, inputs, batch);
    if (per_sample) {
      const torch::Tensor rows =
          at::stack({result.text_loss_by_sample, result.mel_loss_by_sample, result.mel_top1_by_sample})
              .to(at::kCPU, at::kDouble);
      const auto values = rows.accessor<double, 2>();
      for (std::int64_t i = 0; i < batch.count(); ++i) {
        out.samples.push_back({values[0][i], values[1][i], static_cast<std::int64_t>(values[2][i])});
      }
    }
    return out;
  }

 private:
  LossSums sums(const ForwardResult& result, const ModelInputs& inputs, const Batch& batch) const {
    LossSums out;
    const auto number = [](const at::Tensor& t) {
      return t.defined() ? t.detach().to(at::kDouble) : torch::zeros({}, at::kDouble);
    };
    const at::Tensor top1 = number(result.mel_top1_count);
    const at::Tensor top5 = result.mel_top5_count.defined() ? number(result.mel_top5_count) : torch::zeros_like(top1);
    out.values = at::stack({number(result.text_loss_sum), number(result.mel_loss_sum), top1, top5});
    out.text_tokens = result.text_tokens;
    out.mel_tokens = result.mel_tokens;
    out.positions = real_positions(batch, model_options_);
    out.padded_positions = inputs.rows();
    return out;
  }

  UnifiedVoice& model_;
  AdapterSet* adapters_;
  std::unique_ptr<AdapterHooks> hooks_;  // only with dropout between base and adapter
  bool hooks_training_ = false;
  std::unique_ptr<StageWatch> watch_;
  ModelOptions model_options_;
  BatchLayout layout_;
  std::int64_t checkpoint_every_;
  at::ScalarType compute_;
};

}  // namespace

std::unique_ptr<Engine> make_modules_engine(UnifiedVoice& model, const Options& options, at::ScalarType compute,
                                            AdapterSet* adapters) {
  return std::make_unique<ModulesEngine>(model, options, compute, adapters);
}

std::int64_t real_positions(const Batch& batch, const ModelOptions& options) {
  // Per sample: prefix, start and stop of the text, start of the mel part (its stop input predicts nothing).
  const auto ids = static_cast<std::int64_t>(batch.text.size() + batch.codes.size());
  return ids + batch.count() * (options.prefix_length() + 3);
}

at::ScalarType resolve_precision(const std::string& precision, at::Device device) {
  if (precision == "fp32") return at::kFloat;
  if (precision == "bf16") return at::kBFloat16;
  if (precision == "fp16") return at::kHalf;
  TGV2_CHECK(precision == "auto");
#ifdef TGV2_CUDA_API
  if (device.is_cuda()) {
    return at::cuda::getDeviceProperties(device.index())->major >= 8 ? at::kBFloat16 : at::kHalf;
  }
#endif
  return device.is_cuda() ? at::kBFloat16 : at::kFloat;
}

std::string precision_name(at::ScalarType type) {
  return type == at::kBFloat16 ? "bf16" : type == at::kHalf ? "fp16" : "fp32";
}

}  // namespace train_gpt_v2
