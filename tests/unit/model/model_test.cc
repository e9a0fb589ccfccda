// Initialisation, batch assembly, dropout and recomputation of UnifiedVoice.

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "support/model_fill.h"
#include "support/state_access.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/model/autocast.h"
#include "train_gpt_v2/model/initialise.h"

namespace train_gpt_v2::testing {
namespace {

std::vector<std::int64_t> ints(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.contiguous();
  return {flat.const_data_ptr<std::int64_t>(), flat.const_data_ptr<std::int64_t>() + flat.numel()};
}

using List = std::vector<std::int64_t>;

TEST(Assemble, PaddedIsTheWorkedExample) {  // architecture.md §4.1 with start/stop 38/39
  const ModelInputs in = assemble_inputs(worked_example(), tiny_options(), BatchLayout::kPadded, at::kCPU);
  EXPECT_EQ(in.segments.lengths, (List{45, 45}));
  EXPECT_EQ(ints(in.text_ids), (List{0, 10, 11, 12, 1, 0, 20, 21, 1, 1}));
  EXPECT_EQ(ints(in.text_positions), (List{0, 1, 2, 3, 4, 0, 1, 2, 3, 4}));
  EXPECT_EQ(ints(in.text_targets), (List{10, 11, 12, 1, 20, 21, 1}));
  EXPECT_EQ(ints(in.text_scored_rows), (List{34, 35, 36, 37, 79, 80, 81}));
  EXPECT_EQ(ints(in.mel_ids), (List{38, 7, 8, 9, 7, 39, 38, 5, 6, 39, 39, 39}));
  EXPECT_EQ(ints(in.mel_positions), (List{0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(ints(in.mel_targets), (List{7, 8, 9, 7, 39, 5, 6, 39}));
  EXPECT_EQ(ints(in.mel_scored_rows), (List{39, 40, 41, 42, 43, 84, 85, 86}));
  EXPECT_EQ(ints(in.mel_sample), (List{0, 0, 0, 0, 0, 1, 1, 1}));
}

TEST(Assemble, PackedHasNoPadding) {
  const ModelInputs in = assemble_inputs(worked_example(), tiny_options(), BatchLayout::kPacked, at::kCPU);
  EXPECT_EQ(in.segments.lengths, (List{34 + 5 + 5, 34 + 4 + 3}));
  EXPECT_EQ(ints(in.text_ids), (List{0, 10, 11, 12, 1, 0, 20, 21, 1}));
  EXPECT_EQ(ints(in.mel_ids), (List{38, 7, 8, 9, 7, 38, 5, 6}));
  EXPECT_EQ(in.text_begin, (List{34, 44 + 34}));
  EXPECT_EQ(in.mel_begin, (List{39, 44 + 38}));
  EXPECT_EQ(in.segments.offsets[2].item<int>(), 85);
}

TEST(Assemble, RefusesWhatTheModelCannotHold) {
  const auto code_of = [](const Batch& batch) -> std::string {
    try {
      assemble_inputs(batch, tiny_options(), BatchLayout::kPacked, at::kCPU);
    } catch (const Error& error) {
      return error.code();
    }
    return "none";
  };
  Batch batch = worked_example();
  EXPECT_EQ(code_of(batch), "none");
  batch.text[1] = 51;  // rows 0..50
  EXPECT_EQ(code_of(batch), "DAT042");
  batch.text[1] = -1;
  EXPECT_EQ(code_of(batch), "DAT042");
  batch = worked_example();
  batch.codes[0] = 40;
  EXPECT_EQ(code_of(batch), "DAT042");
  Batch text_long, codes_long, longest;
  add_sample(text_long, std::vector<std::int32_t>(41, 3), {1});
  EXPECT_EQ(code_of(text_long), "DAT043");
  add_sample(codes_long, {3}, std::vector<std::int32_t>(62, 1));
  EXPECT_EQ(code_of(codes_long), "DAT043");
  add_sample(longest, std::vector<std::int32_t>(40, 3), std::vector<std::int32_t>(61, 1));
  longest.condition.assign(32 * 64, 0);
  longest.emo_vec.assign(64, 0);
  EXPECT_EQ(code_of(longest), "none");
}

TEST(Initialise, FollowsTheReferencesDistributions) {
  ModelOptions options = tiny_options();
  options.number_text_tokens = 5000;  // enough numbers for tight statistics
  UnifiedVoice model(options);
  initialise(model, 7);
  const auto state = state_map(model);
  const auto deviation = [&](const char* name) { return state.at(name).std().item<double>(); };
  const auto largest = [&](const char* name) { return state.at(name).abs().max().item<double>(); };
  EXPECT_NEAR(deviation("text_embedding.weight"), 0.02, 0.0002);
  EXPECT_NEAR(state.at("text_embedding.weight").mean().item<double>(), 0, 0.0002);
  EXPECT_NEAR(deviation("gpt.h.1.attn.c_attn.weight"), 0.02, 0.001);
  EXPECT_NEAR(deviation("gpt.h.1.mlp.c_proj.weight"), 0.02 / std::sqrt(6.0), 0.0005);
  EXPECT_NEAR(deviation("gpt.h.2.attn.c_proj.weight"), 0.02 / std::sqrt(6.0), 0.0005);
  EXPECT_EQ(largest("gpt.h.0.mlp.c_fc.bias"), 0);
  EXPECT_EQ(largest("gpt.ln_f.bias"), 0);
  EXPECT_EQ(largest("speed_emb.weight"), 0);
  EXPECT_EQ(state.at("final_norm.weight").min().item<double>(), 1);
  EXPECT_EQ(state.at("perceiver_encoder.norm.gamma").min().item<double>(), 1);
  EXPECT_NEAR(largest("text_head.weight"), 1 / 8.0, 1e-4);
  EXPECT_NEAR(largest("text_head.bias"), 1 / 8.0, 1e-4);
  EXPECT_NEAR(deviation("text_head.weight"), 1 / 8.0 / std::sqrt(3.0), 1e-3);
  EXPECT_NEAR(deviation("perceiver_encoder.latents"), 0.02, 0.001);
  const double in = 1 / std::sqrt(511.0 * 32);
  EXPECT_NEAR(largest("conditioning_encoder.embed.out.0.weight"), in, 1e-5);
  EXPECT_LE(largest("conditioning_encoder.embed.out.0.bias"), in);
  EXPECT_NEAR(largest("conditioning_encoder.embed.conv.0.weight"), 1 / 3.0, 0.01);
  EXPECT_NEAR(largest("conditioning_encoder.encoders.0.conv_module.depthwise_conv.weight"), 0.2582, 0.002);
  EXPECT_LE(largest("conditioning_encoder.encoders.0.self_attn.pos_bias_u"), std::sqrt(6.0 / 12));
  EXPECT_GT(largest("conditioning_encoder.encoders.0.self_attn.pos_bias_u"), 0.55);
  EXPECT_NEAR(largest("emo_conditioning_encoder.encoders.1.feed_forward.w_2.weight"), 1 / std::sqrt(48.0), 0.001);
  for (const auto& [name, tensor] : state) EXPECT_TRUE(tensor.isfinite().all().item<bool>()) << name;
}

TEST(Initialise, DependsOnSeedAndNameOnly) {
  UnifiedVoice a(tiny_options()), b(tiny_options()), c(tiny_options());
  initialise(a, 1);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  initialise(b, 1);
  at::set_num_threads(threads);
  initialise(c, 2);
  const auto first = state_map(a), second = state_map(b), other = state_map(c);
  for (const auto& [name, tensor] : first) EXPECT_TRUE(at::equal(tensor, second.at(name))) << name;
  EXPECT_FALSE(at::equal(first.at("mel_head.weight"), other.at("mel_head.weight")));
  EXPECT_FALSE(at::equal(first.at("gpt.h.0.mlp.c_fc.weight"), first.at("gpt.h.1.mlp.c_fc.weight")));
}

struct Gradients {
  double loss;
  std::map<std::string, at::Tensor> by_name;
};

Gradients gradients(UnifiedVoice& model, const ModelInputs& inputs, const ForwardOptions& options) {
  model.zero_grad();
  const ForwardResult r = model.forward(inputs, options);
  const at::Tensor loss = r.text_loss_sum + r.mel_loss_sum;
  torch::autograd::backward({loss}, {});
  Gradients out{loss.item<double>(), {}};
  for (const StateEntry& entry : model.state()) {
    if (!entry.buffer && entry.tensor.grad().defined()) out.by_name[entry.name] = entry.tensor.grad().clone();
  }
  return out;
}

double largest_difference(const Gradients& a, const Gradients& b) {
  EXPECT_EQ(a.by_name.size(), b.by_name.size());
  double worst = std::abs(a.loss - b.loss);
  for (const auto& [name, gradient] : a.by_name) {
    worst = std::max(worst, (gradient - b.by_name.at(name)).abs().max().item<double>());
  }
  return worst;
}

ForwardOptions dropped(std::uint32_t step, std::uint32_t micro = 0) {
  ForwardOptions options;
  options.dropout = make_dropout({1234, step, micro}, 0.1);
  return options;
}

class Training : public ::testing::TestWithParam<BatchLayout> {
 protected:
  Training()
      : model_(filled_model(tiny_options(), at::kDouble)),
        inputs_(assemble_inputs(worked_example(), tiny_options(), GetParam(), at::kCPU, at::kDouble)) {}
  std::shared_ptr<UnifiedVoice> model_;
  ModelInputs inputs_;
};

TEST_P(Training, RecomputationGivesTheSameGradients) {
  for (ForwardOptions options : {ForwardOptions{}, dropped(3)}) {
    const Gradients plain = gradients(*model_, inputs_, options);
    for (const std::int64_t every : {1, 2}) {
      options.checkpoint_every = every;
      EXPECT_LT(largest_difference(plain, gradients(*model_, inputs_, options)), 1e-14);
    }
  }
}

TEST_P(Training, RecomputationWorksWithFrozenTables) {
  model_->text_embedding->weight.set_requires_grad(false);
  for (const StateEntry& entry : model_->state()) {
    if (!entry.buffer) entry.tensor.set_requires_grad(entry.name == "gpt.h.0.attn.c_attn.weight");
  }
  ForwardOptions options;
  const Gradients plain = gradients(*model_, inputs_, options);
  ASSERT_EQ(plain.by_name.size(), 1u);
  options.checkpoint_every = 1;
  EXPECT_LT(largest_difference(plain, gradients(*model_, inputs_, options)), 1e-14);
}

TEST_P(Training, DropoutIsAFunctionOfItsKey) {
  const Gradients once = gradients(*model_, inputs_, dropped(3));
  EXPECT_EQ(largest_difference(once, gradients(*model_, inputs_, dropped(3))), 0);
  EXPECT_NE(once.loss, gradients(*model_, inputs_, dropped(4)).loss);
  EXPECT_NE(once.loss, gradients(*model_, inputs_, dropped(3, 1)).loss);
  EXPECT_NE(once.loss, gradients(*model_, inputs_, {}).loss);
}

TEST_P(Training, NoGeneratorIsTouched) {
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU);
  const at::Tensor before = generator.get_state().clone();
  gradients(*model_, inputs_, dropped(3));
  gradients(*model_, inputs_, {});
  EXPECT_TRUE(at::equal(before, generator.get_state()));
}

TEST_P(Training, SampleSumsAddUp) {
  const at::NoGradGuard no_grad;
  ForwardOptions options;
  options.detailed = true;
  const ForwardResult r = model_->forward(inputs_, options);
  EXPECT_NEAR(r.text_loss_by_sample.sum().item<double>(), r.text_loss_sum.item<double>(), 1e-12);
  EXPECT_NEAR(r.mel_loss_by_sample.sum().item<double>(), r.mel_loss_sum.item<double>(), 1e-12);
  EXPECT_EQ(r.mel_top1_by_sample.sum().item<double>(), r.mel_top1_count.item<double>());
  EXPECT_GE(r.mel_top5_count.item<std::int64_t>(), r.mel_top1_count.item<std::int64_t>());
  EXPECT_LE(r.mel_top5_count.item<std::int64_t>(), r.mel_tokens);
}

TEST_P(Training, ReducedPrecisionStaysNearAndLeavesNoTrace) {
  const auto model = filled_model(tiny_options(), at::kFloat);
  const ModelInputs in = assemble_inputs(worked_example(), tiny_options(), GetParam(), at::kCPU);
  ForwardOptions options;
  const double exact = gradients(*model, in, options).loss;
  double reduced = 0;
  {
    const AutocastScope scope(at::kCPU, at::kBFloat16);
    const ForwardResult r = model->forward(in, options);
    reduced = (r.text_loss_sum + r.mel_loss_sum).item<double>();
    options.checkpoint_every = 1;
    EXPECT_EQ(reduced, gradients(*model, in, options).loss);
  }
  EXPECT_NE(reduced, exact);
  EXPECT_NEAR(reduced / exact, 1, 0.01);
  EXPECT_EQ(gradients(*model, in, {}).loss, exact);
}

INSTANTIATE_TEST_SUITE_P(Layouts, Training, ::testing::Values(BatchLayout::kPacked, BatchLayout::kPadded),
                         [](const auto& test) { return test.param == BatchLayout::kPacked ? "packed" : "padded"; });

// Masks name rows by sample and position, so equally long samples drop the same elements in both layouts.
TEST(Dropout, LayoutsAgreeWhereTheirPositionsDo) {
  const auto model = filled_model(tiny_options(), at::kDouble);
  const Batch batch = worked_example({0, 1}, {10, 11});
  const at::NoGradGuard no_grad;
  const auto mel = [&](BatchLayout layout) {
    const ForwardResult r =
        model->forward(assemble_inputs(batch, tiny_options(), layout, at::kCPU, at::kDouble), dropped(3));
    return r.mel_loss_sum.item<double>();
  };
  EXPECT_NEAR(mel(BatchLayout::kPacked), mel(BatchLayout::kPadded), 1e-12);
}

TEST(OnlineConditioning, TrainsTheEncodersOnlyWhenAsked) {
  const auto model = filled_model(tiny_options(), at::kFloat);
  Batch batch;
  add_sample(batch, {10, 11}, {5, 6});
  add_sample(batch, {12}, {7});
  batch.features = numbers(filled("input.feat", {11 + 7, 1024}, 2));
  batch.frame_begin = {0, 11, 18};
  const ModelInputs in = assemble_inputs(batch, tiny_options(), BatchLayout::kPacked, at::kCPU);
  const Gradients all = gradients(*model, in, {});
  EXPECT_TRUE(all.by_name.contains("conditioning_encoder.embed.conv.0.weight"));
  EXPECT_TRUE(all.by_name.contains("emo_perceiver_encoder.latents"));
  for (const StateEntry& entry : model->state()) {
    if (UnifiedVoice::is_conditioner(entry.name)) {
      EXPECT_GT(entry.buffer ? 1.0 : all.by_name.at(entry.name).abs().max().item<double>(),
                // a shift of all keys of a softmax changes nothing
                entry.name.ends_with("linear_k.bias") ? -1 : 0)
          << entry.name;
      if (!entry.buffer) entry.tensor.set_requires_grad(false);
    }
  }
  const Gradients frozen = gradients(*model, in, {});
  EXPECT_NEAR(frozen.loss, all.loss, 1e-4);
  for (const auto& [name, gradient] : frozen.by_name) EXPECT_FALSE(UnifiedVoice::is_conditioner(name)) << name;
}

}  // namespace
}  // namespace train_gpt_v2::testing
