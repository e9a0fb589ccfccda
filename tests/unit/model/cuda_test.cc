// What needs a GPU; skipped where there is none.
#include <ATen/Context.h>

#include <cmath>
#include <map>

#include "support/model_fill.h"
#include "support/state_access.h"
#include "support/test_files.h"
#include "train_gpt_v2/kernels/cuda.h"
#include "train_gpt_v2/model/dropout.h"
#include "train_gpt_v2/model/fused_gpt.h"
#include "train_gpt_v2/model/initialise.h"
#include "train_gpt_v2/model/unified_voice.h"

namespace train_gpt_v2 {
namespace {

class Cuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!at::hasCUDA() || at::detail::getCUDAHooks().deviceCount() == 0) GTEST_SKIP() << "no GPU here";
  }
};

TEST_F(Cuda, DeterministicDropoutUsesTheMasksOfTheCpu) {
  const Segments segments = make_segments({5, 9});
  const Dropout dropout = make_dropout({1234, 7, 2}, 0.1);
  const at::Tensor x = at::ones({14, 300});
  at::globalContext().setDeterministicAlgorithms(true, false);
  const at::Tensor there = apply_dropout(x.to(at::kCUDA), dropout, dropout_site_mlp_residual(3), segments).cpu();
  at::globalContext().setDeterministicAlgorithms(false, false);
  EXPECT_TRUE(at::equal(there, apply_dropout(x, dropout, dropout_site_mlp_residual(3), segments)));
}

TEST_F(Cuda, LossesAreThoseOfTheCpu) {
  ModelOptions options;
  options.model_dim = 64;
  options.layers = 2;
  options.heads = 2;
  options.number_text_tokens = 50;
  options.number_mel_codes = 42;
  options.start_mel_token = 40;
  options.stop_mel_token = 41;
  options.condition_module = {16, 16, 2, 1, "conv2d2", 1};
  options.emo_condition_module = {16, 16, 2, 1, "conv2d2", 0.1};
  UnifiedVoice model(options);
  initialise(model, 1);
  Batch batch;
  for (int i = 0; i < 3; ++i) {
    batch.ids.push_back("s" + std::to_string(i));
    batch.samples.push_back(0);
    for (int t = 0; t < 4 + i; ++t) batch.text.push_back(5 + t);
    for (int c = 0; c < 20 - 3 * i; ++c) batch.codes.push_back((7 * c) % 40);
    batch.text_begin.push_back(static_cast<std::int64_t>(batch.text.size()));
    batch.code_begin.push_back(static_cast<std::int64_t>(batch.codes.size()));
  }
  batch.condition.assign(static_cast<std::size_t>(3 * 32 * 64), 0.1f);
  batch.emo_vec.assign(3 * 64, 0.05f);
  for (const BatchLayout layout : {BatchLayout::kPacked, BatchLayout::kPadded}) {
    model.to(at::kCPU);
    const ForwardResult here = model.forward(assemble_inputs(batch, options, layout, at::kCPU));
    model.to(at::kCUDA);
    const ForwardResult there = model.forward(assemble_inputs(batch, options, layout, at::Device(at::kCUDA, 0)));
    EXPECT_NEAR(here.mel_loss_sum.item<double>(), there.mel_loss_sum.item<double>(), 1e-4 * here.mel_tokens);
    EXPECT_NEAR(here.text_loss_sum.item<double>(), there.text_loss_sum.item<double>(), 1e-4 * here.text_tokens);
  }
}

#ifdef TGV2_OWN_CUDA_KERNELS
// One step of the fused engine on some device: losses, and gradients by key.
struct FusedStep {
  FusedLosses losses, evaluated;
  std::map<std::string, std::vector<float>> grads;
};

FusedStep fused_step(const ModelOptions& options, const Batch& batch, bool bf16, at::Device device) {
  const auto state = testing::state_map(*testing::filled_model(options, at::kFloat));
  std::map<std::string, at::Tensor> values, grads;
  FusedParameters parameters;
  for (const auto& [key, numel] : FusedGpt::required_parameters(options)) {
    values[key] = state.at(key).detach().to(device).contiguous();
    grads[key] = at::zeros_like(values[key]);
    parameters[key] = {values[key].const_data_ptr<float>(), grads[key].mutable_data_ptr<float>(), numel};
  }
  FusedOptions how;
  how.bf16 = bf16;
  how.head_rows = 16;  // several pieces of logits
  how.whole_classes = device.is_cuda();
  FusedGpt engine(options, parameters, how,
                  device.is_cuda() ? make_cuda_kernels(device.index(), nullptr, false) : nullptr);
  FusedStep step;
  for (std::uint32_t micro = 0; micro < 2; ++micro) {  // the second adds to the first
    if (micro == 0) engine.begin_window();
    step.losses = engine.forward_backward(batch, {77, 5, micro}, 0.0375, 0.08);
  }
  step.evaluated = engine.evaluate(batch);
  for (const auto& [key, grad] : grads) step.grads[key] = testing::numbers(grad.cpu());
  return step;
}

// Single precision: the same sums in other orders. bf16 against single precision: 2^-9 an operand.
TEST_F(Cuda, FusedStepIsThatOfTheCpuWithTheSameMasks) {
  for (const std::int64_t heads : {1, 4}) {  // head sizes 64, on tensor cores in bf16, and 16
    ModelOptions options = testing::tiny_options();
    options.dropout = 0.1;
    options.heads = heads;
    Batch batch;
    for (int i = 0; i < 3; ++i) {
      std::vector<std::int32_t> text, codes;
      for (int t = 0; t < 4 + 9 * i; ++t) text.push_back(2 + (5 * t + i) % 48);
      for (int c = 0; c < 55 - 20 * i; ++c) codes.push_back((7 * c + i) % 38);
      testing::add_sample(batch, text, codes);
    }
    batch.condition = testing::numbers(testing::filled("condition", {3, 32, 64}, 2));
    batch.emo_vec = testing::numbers(testing::filled("emotion", {3, 64}, 2));
    const FusedStep want = fused_step(options, batch, false, at::kCPU);
    for (const bool bf16 : {false, true}) {
      const FusedStep mine = fused_step(options, batch, bf16, at::Device(at::kCUDA, 0));
      const double limit = bf16 ? 2e-3 : 1e-6;
      EXPECT_NEAR(mine.losses.text_loss_sum, want.losses.text_loss_sum, limit * want.losses.text_loss_sum);
      EXPECT_NEAR(mine.losses.mel_loss_sum, want.losses.mel_loss_sum, limit * want.losses.mel_loss_sum);
      EXPECT_NEAR(mine.evaluated.mel_loss_sum, want.evaluated.mel_loss_sum, limit * want.evaluated.mel_loss_sum);
      if (!bf16) {
        EXPECT_EQ(mine.losses.mel_top5, want.losses.mel_top5);
      }
      for (const auto& [key, grad] : want.grads) {
        double difference = 0, size = 0;
        for (std::size_t i = 0; i < grad.size(); ++i) {
          if (key.ends_with("c_attn.bias") && i >= 64 && i < 128) continue;  // rounding noise: exactly zero otherwise
          difference += std::pow(static_cast<double>(mine.grads.at(key)[i]) - grad[i], 2);
          size += std::pow(static_cast<double>(grad[i]), 2);
        }
        EXPECT_GT(size, 0) << key;
        EXPECT_LE(std::sqrt(difference), (bf16 ? 0.03 : 2e-5) * std::sqrt(size)) << key << (bf16 ? " bf16" : "");
      }
      const FusedStep again = fused_step(options, batch, bf16, at::Device(at::kCUDA, 0));
      EXPECT_EQ(again.losses.mel_loss_sum, mine.losses.mel_loss_sum);
      for (const auto& [key, grad] : mine.grads) EXPECT_EQ(grad, again.grads.at(key)) << key;
    }
  }
}
#endif

}  // namespace
}  // namespace train_gpt_v2
