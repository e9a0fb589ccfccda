// What needs a GPU; skipped where there is none.
#include <ATen/Context.h>

#include "support/test_files.h"
#include "train_gpt_v2/model/dropout.h"
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

}  // namespace
}  // namespace train_gpt_v2
