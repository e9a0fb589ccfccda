// Every number of architecture.md §10 (a), (b) and (d): the reference's classes in double, deterministic weights.
// Numbers are printed there with 8 to 12 digits; each check allows half a unit of the last digit, rounded up.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <map>
#include <set>

#include "support/model_fill.h"
#include "support/state_access.h"

namespace train_gpt_v2::testing {
namespace {

using Numbers = std::vector<double>;

void expect_near(const at::Tensor& actual, const Numbers& expected, double limit) {
  const at::Tensor flat = actual.detach().to(at::kDouble).contiguous().flatten();
  ASSERT_EQ(flat.numel(), static_cast<std::int64_t>(expected.size()));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(flat[static_cast<std::int64_t>(i)].item<double>(), expected[i], limit) << "element " << i;
  }
}

TEST(ModelFill, MatchesTheCheckValues) {
  EXPECT_EQ(fill_seed("speed_emb.weight"), 2379872279u);
  const at::Tensor speed = filled("speed_emb.weight", {2, 64}, 0.2);
  expect_near(speed.flatten().slice(0, 0, 3), {-0.06349421, 0.07339085, 0.04810620}, 6e-9);
  expect_near(speed.flatten().slice(0, 127), {0.07219931}, 6e-9);
  expect_near(filled("input.feat", {2, 41, 1024}, 2)[0][0].slice(0, 0, 3), {0.41765809, -0.18555583, 0.63656902}, 6e-9);
}

class Conditioning : public ::testing::Test {
 protected:
  Conditioning() : model_(filled_model(tiny_options(), at::kDouble)) {
    batch_.features = filled("input.feat", {2, 41, 1024}, 2).to(at::kDouble);
    batch_.lengths = at::tensor(std::vector<std::int64_t>{41, 26});
  }
  const at::NoGradGuard no_grad_;
  std::shared_ptr<UnifiedVoice> model_;
  FeatureBatch batch_;
};

TEST_F(Conditioning, ConformerEmbedding) {
  const at::Tensor x = model_->conditioning_encoder->embed(batch_.features);
  ASSERT_EQ(x.sizes(), (std::vector<std::int64_t>{2, 20, 32}));
  expect_near(x[0][0].slice(0, 0, 4), {-4.44888854, 0.61025225, -3.55029656, -3.32846335}, 1e-8);
  expect_near(x[1][19].slice(0, 0, 4), {1.75660558, -0.22088000, -0.58788334, -1.78999219}, 1e-8);
}

TEST_F(Conditioning, ConformerLayers) {
  const Conformer& conformer = *model_->conditioning_encoder;
  const at::Tensor x = conformer.embed(batch_.features);
  const at::Tensor valid = at::tensor(std::vector<std::int64_t>{20, 12})
                               .unsqueeze(1)
                               .gt(at::tensor([] {
                                     std::vector<std::int64_t> v(20);
                                     for (int i = 0; i < 20; ++i) v[i] = i;
                                     return v;
                                   }())
                                       .unsqueeze(0));
  const at::Tensor positions = sinusoidal_positions(32, at::kDouble)[0].slice(0, 0, 20);
  const auto& layers = *conformer.named_children()["encoders"];
  const auto& layer = dynamic_cast<const ConformerLayer&>(*layers.named_children()["0"]);
  const auto& attention = dynamic_cast<const RelativeAttention&>(*layer.named_children()["self_attn"]);
  const auto& norm_mha = dynamic_cast<const LayerNorm&>(*layer.named_children()["norm_mha"]);
  const auto& norm_conv = dynamic_cast<const LayerNorm&>(*layer.named_children()["norm_conv"]);
  const auto& convolution = dynamic_cast<const ConvolutionModule&>(*layer.named_children()["conv_module"]);
  const at::Tensor attended = attention.forward(norm_mha.forward(x), positions, valid);
  expect_near(attended[1][0].slice(0, 0, 4), {-0.14174153, -0.09558786, 0.05686049, 0.07050353}, 1e-8);
  const at::Tensor convolved =
      convolution.forward(norm_conv.forward(x + attended), valid, ConditionPadding::kReference);
  expect_near(convolved[1][11].slice(0, 0, 4), {-0.03181814, -0.01740686, 0.09226410, 0.07411686}, 1e-8);
  EXPECT_EQ(convolved[1][12].abs().max().item<double>(), 0);
  const at::Tensor out = layer.forward(x, positions, valid, ConditionPadding::kReference);
  expect_near(out[1][11].slice(0, 0, 4), {-1.05822955, 0.87135913, 0.61125079, -1.17664870}, 1e-8);
}

TEST_F(Conditioning, ConformerOutput) {
  const ConditionStates out =
      model_->conditioning_encoder->forward(batch_.features, batch_.lengths, ConditionPadding::kReference);
  expect_near(out.valid.sum(1), {20, 12}, 0);
  expect_near(out.states[0][0].slice(0, 0, 4), {-1.4266033, -0.109349369, -2.01037192, -1.78094508}, 1e-7);
  expect_near(out.states[0].sum(), {-6.83616594}, 1e-8);
  expect_near(out.states[1][11].slice(0, 0, 3), {-0.753065827, 0.886781693, 0.703564056}, 1e-9);
}

TEST_F(Conditioning, PerceiverLayer) {
  const ConditionStates in =
      model_->conditioning_encoder->forward(batch_.features, batch_.lengths, ConditionPadding::kReference);
  const auto tensors = state_map(*model_);
  const at::Tensor context = at::linear(in.states, tensors.at("perceiver_encoder.proj_context.weight"),
                                        tensors.at("perceiver_encoder.proj_context.bias"));
  const at::Tensor latents = tensors.at("perceiver_encoder.latents").unsqueeze(0).expand({2, 32, 64});
  const at::Tensor keys = at::cat({at::ones({2, 32}, at::kBool), in.valid}, 1);
  const PerceiverLayer& layer = model_->perceiver_encoder->layers()[0];
  const at::Tensor attended = layer.attend(latents, context, keys);
  expect_near(attended[1][5].slice(0, 0, 4), {0.03517545, 0.04265687, -0.02258795, 0.00110229}, 1e-8);
  const at::Tensor out = layer.feed_forward(latents + attended);
  expect_near(out[1][5].slice(0, 0, 4), {-0.03878367, 0.04449612, 0.07027863, 0.03393945}, 1e-8);
}

TEST_F(Conditioning, GetConditioning) {
  const at::Tensor out = model_->get_conditioning(batch_, ConditionPadding::kReference);
  expect_near(out[0][0].slice(0, 0, 4), {-1.26543005, -0.380563222, -1.02050686, -0.56623938}, 1e-8);
  expect_near(out[1][31].slice(0, 61), {0.0758121927, -0.0994634338, 1.11837386}, 1e-8);
  expect_near(out.sum(), {407.369295}, 1e-6);
  expect_near(out.square().sum(), {4130.91925}, 1e-5);
}

TEST_F(Conditioning, GetEmovec) {
  const at::Tensor states = model_->get_emo_conditioning(batch_, ConditionPadding::kReference);
  expect_near(states[0].slice(0, 0, 4), {-0.04217260, 1.32225464, 0.54636386, 1.32532586}, 1e-8);
  expect_near(model_->emovec_layer->forward(states)[0].slice(0, 0, 4),
              {2.51235122, -0.81261766, 0.25014672, 3.28925918}, 1e-8);
  const at::Tensor out = model_->get_emovec(batch_, ConditionPadding::kReference);
  expect_near(out[0].slice(0, 0, 4), {0.904027662, -0.107440706, -0.778636125, 0.152752047}, 1e-9);
  expect_near(out[1].slice(0, 0, 3), {1.33549086, 0.673291133, -0.430942145}, 1e-8);
  expect_near(out.sum(), {2.80108416}, 1e-8);
}

TEST_F(Conditioning, CleanPaddingGivesWhatAnItemGetsAlone) {
  FeatureBatch alone;
  alone.features = batch_.features.slice(0, 1, 2).slice(1, 0, 26);
  alone.lengths = at::tensor(std::vector<std::int64_t>{26});
  const at::Tensor single = model_->get_conditioning(alone, ConditionPadding::kReference)[0];
  const at::Tensor clean = model_->get_conditioning(batch_, ConditionPadding::kClean)[1];
  const at::Tensor reference = model_->get_conditioning(batch_, ConditionPadding::kReference)[1];
  EXPECT_LT((single - clean).abs().max().item<double>(), 1e-13);
  EXPECT_GT((single - reference).abs().max().item<double>(), 1e-4);  // the reference's leak, architecture.md §3.3
}

struct Losses {
  double text, mel, top1;
};

Losses run(UnifiedVoice& model, const Batch& batch, BatchLayout layout) {
  const at::NoGradGuard no_grad;
  const ForwardResult r = model.forward(assemble_inputs(batch, model.options(), layout, at::kCPU, model.dtype()));
  return {r.text_loss_sum.item<double>() / static_cast<double>(r.text_tokens),
          r.mel_loss_sum.item<double>() / static_cast<double>(r.mel_tokens),
          r.mel_top1_count.item<double>() / static_cast<double>(r.mel_tokens)};
}

void expect_losses(const Losses& actual, const Losses& expected, double limit) {
  EXPECT_NEAR(actual.text, expected.text, limit);
  EXPECT_NEAR(actual.mel, expected.mel, limit);
  EXPECT_NEAR(actual.top1, expected.top1, 1e-12);
}

class Training : public ::testing::Test {
 protected:
  Training() : model_(filled_model(tiny_options(), at::kDouble)) {}
  ModelInputs inputs(BatchLayout layout) {
    return assemble_inputs(worked_example(), model_->options(), layout, at::kCPU, at::kDouble);
  }
  std::shared_ptr<UnifiedVoice> model_;
};

TEST_F(Training, Losses) {
  const Losses both{4.084428781, 3.564875492, 0.125};
  expect_losses(run(*model_, worked_example(), BatchLayout::kPadded), both, 1e-9);
  EXPECT_NEAR(0.2 * both.text + 0.8 * both.mel, 3.66878615, 1e-8);
  for (const auto layout : {BatchLayout::kPadded, BatchLayout::kPacked}) {
    expect_losses(run(*model_, worked_example({0}), layout), {3.981919279, 3.542342482, 0.2}, 1e-9);
    expect_losses(run(*model_, worked_example({1}), layout), {4.221108117, 3.592205617, 0}, 1e-9);
  }
  const auto single = filled_model(tiny_options(), at::kFloat);
  expect_losses(run(*single, worked_example(), BatchLayout::kPadded), both, 1e-6);
}

TEST_F(Training, PackedIsEachSampleAlone) {
  const Losses packed = run(*model_, worked_example(), BatchLayout::kPacked);
  EXPECT_NEAR(packed.text, (4 * 3.981919279 + 3 * 4.221108117) / 7, 1e-9);
  EXPECT_NEAR(packed.mel, (5 * 3.542342482 + 3 * 3.592205617) / 8, 1e-9);
}

TEST_F(Training, LayoutsWithUnequalTexts) {
  const Batch batch = worked_example({0, 1}, {10, 11, 12, 13, 14, 15});
  const Losses padded = run(*model_, batch, BatchLayout::kPadded);
  EXPECT_NEAR(padded.text, 4.158972029710, 1e-12);
  EXPECT_NEAR(padded.mel, 3.570953767108, 1e-12);
  const Losses packed = run(*model_, batch, BatchLayout::kPacked);
  EXPECT_NEAR(packed.text, 4.158972029710, 1e-12);
  EXPECT_NEAR(packed.mel, 3.554286055176, 1e-12);
  const Losses stops = run(*model_, batch, BatchLayout::kPackedTextPadded);
  EXPECT_NEAR(stops.text, padded.text, 1e-14);
  EXPECT_NEAR(stops.mel, padded.mel, 1e-14);
}

TEST_F(Training, Intermediates) {
  const at::NoGradGuard no_grad;
  const ModelInputs in = inputs(BatchLayout::kPadded);
  ASSERT_EQ(in.rows(), 2 * 45);
  const at::Tensor x = model_->embed(in);
  const at::Tensor sample1 = x.slice(0, 45);
  expect_near(sample1[32].slice(0, 0, 4), {0.06575502, -0.01776516, 0.00933205, 0.01102332}, 1e-8);
  expect_near(sample1[33].slice(0, 0, 4), {-0.06349421, 0.07339085, 0.04810620, 0.00052287}, 1e-8);
  expect_near(sample1[34].slice(0, 0, 4), {0.09925727, -0.05997839, -0.09105715, -0.03130088}, 1e-8);

  const auto tensors = state_map(*model_);
  const Gpt2Block& first = *model_->gpt->blocks()[0];
  const at::Tensor attention =
      at::addmm(tensors.at("gpt.h.0.attn.c_proj.bias"), causal_attention(first.project_qkv(x), 4, in.segments, {}, 0),
                tensors.at("gpt.h.0.attn.c_proj.weight"));
  expect_near(attention[45 + 43].slice(0, 0, 4), {-0.05871497, -0.04881920, 0.03083293, 0.25059256}, 1e-8);
  at::Tensor y = x;
  const std::vector<Numbers> expected{{-0.30923927, 0.13832891, -0.08084053, 0.24036179},
                                      {-0.99799912, -0.08198935, -0.43378595, 0.11944759},
                                      {-0.54581950, -0.38355611, -0.68549478, 0.15966875}};
  for (std::size_t i = 0; i < 3; ++i) {
    const at::Tensor next = model_->gpt->blocks()[i]->forward(y, in.segments, {});
    expect_near(next[45 + 34].slice(0, 0, 4), expected[i], 1e-8);
    if (i == 0) {
      expect_near((next - y - attention)[45 + 43].slice(0, 0, 4), {-0.02368737, 0.19260246, -0.39566467, 0.01563256},
                  1e-8);
    }
    y = next;
  }
  expect_near(model_->gpt->ln_f().forward(y)[45 + 43].slice(0, 0, 4),
              {-0.29561523, 0.42388010, -1.83807432, -0.21285783}, 1e-8);
  const at::Tensor z = model_->final_states(y);
  expect_near(z[45 + 43].slice(0, 0, 4), {-0.21389727, 0.42746229, -1.97418792, -0.12327883}, 1e-8);
  expect_near(model_->text_head->forward(z.slice(0, 45 + 34, 45 + 35)).slice(1, 0, 4),
              {-0.43644711, -0.09252999, 0.29443900, 0.05518896}, 1e-8);
  expect_near(model_->mel_head->forward(z.slice(0, 45 + 39, 45 + 40)).slice(1, 0, 4),
              {0.36667153, 0.63490901, -0.28717069, 0.01476931}, 1e-8);
  // Latents of §5.4, sample 0: rows at mel inputs 0..m-1.
  expect_near(z[39].slice(0, 0, 3), {0.448013406, 2.09583777, -0.0615472108}, 1e-8);
  expect_near(z[42].slice(0, 0, 3), {0.460482392, 1.08013192, 0.0618069424}, 1e-8);
}

std::set<std::int64_t> nonzero_rows(const at::Tensor& gradient) {
  const at::Tensor rows = gradient.abs().sum(1).gt(0);
  std::set<std::int64_t> found;
  for (std::int64_t i = 0; i < rows.numel(); ++i) {
    if (rows[i].item<bool>()) found.insert(i);
  }
  return found;
}

TEST(TrainingGradients, NormsAndRows) {
  const auto model = filled_model(tiny_options(), at::kFloat);
  const ForwardResult r =
      model->forward(assemble_inputs(worked_example(), model->options(), BatchLayout::kPadded, at::kCPU));
  const at::Tensor loss = 0.2 * r.text_loss_sum / static_cast<double>(r.text_tokens) +
                          0.8 * r.mel_loss_sum / static_cast<double>(r.mel_tokens);
  torch::autograd::backward({loss}, {});
  double square = 0;
  std::map<std::string, at::Tensor> gradient;
  for (const StateEntry& entry : model->state()) {
    if (entry.buffer) continue;
    EXPECT_EQ(entry.tensor.grad().defined(), !UnifiedVoice::is_conditioner(entry.name)) << entry.name;
    if (!entry.tensor.grad().defined()) continue;
    gradient[entry.name] = entry.tensor.grad();
    square += entry.tensor.grad().to(at::kDouble).square().sum().item<double>();
  }
  EXPECT_NEAR(std::sqrt(square), 5.89077, 6e-6);
  EXPECT_NEAR(gradient["gpt.h.0.attn.c_attn.weight"].norm().item<double>(), 1.91964, 6e-6);
  EXPECT_NEAR(gradient["speed_emb.weight"][0].norm().item<double>(), 0.111656, 1e-6);
  EXPECT_NEAR(gradient["speed_emb.weight"][1].norm().item<double>(), 0.111665, 1e-6);
  EXPECT_EQ(nonzero_rows(gradient["text_embedding.weight"]), (std::set<std::int64_t>{0, 1, 10, 11, 12, 20, 21}));
  EXPECT_EQ(nonzero_rows(gradient["mel_embedding.weight"]), (std::set<std::int64_t>{5, 6, 7, 8, 9, 38}));
  EXPECT_EQ(nonzero_rows(gradient["text_pos_embedding.emb.weight"]).size(), 5u);
  EXPECT_EQ(nonzero_rows(gradient["mel_pos_embedding.emb.weight"]).size(), 5u);
}

TEST(ModelKeys, ProjectionOnlyWhereWidthsDiffer) {  // §10 (d)
  ModelOptions options = tiny_options();
  options.model_dim = 32;
  const UnifiedVoice model(options, at::TensorOptions(at::kMeta).dtype(at::kFloat));
  std::set<std::string> keys;
  for (const StateEntry& entry : model.state()) keys.insert(entry.name);
  EXPECT_FALSE(keys.contains("perceiver_encoder.proj_context.weight"));
  EXPECT_TRUE(keys.contains("emo_perceiver_encoder.proj_context.weight"));
}

}  // namespace
}  // namespace train_gpt_v2::testing
