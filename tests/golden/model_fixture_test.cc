// The fixtures of the Python reference: losses, logits, gradients and conditioning of real weights, in double within
// 1e-12 (1e-10 for conditioning) and in float within the limits of the fixtures' README.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <set>

#include "support/fixture_set.h"
#include "support/state_access.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/io/safetensors.h"

namespace train_gpt_v2::testing {
namespace {

struct Losses {
  double text, mel, top1;
};

Losses losses(UnifiedVoice& model, const Batch& batch, BatchLayout layout) {
  const at::NoGradGuard no_grad;
  const ForwardResult r = model.forward(assemble_inputs(batch, model.options(), layout, at::kCPU, model.dtype()));
  return {r.text_loss_sum.item<double>() / static_cast<double>(r.text_tokens),
          r.mel_loss_sum.item<double>() / static_cast<double>(r.mel_tokens),
          r.mel_top1_count.item<double>() / static_cast<double>(r.mel_tokens)};
}

struct Case {
  at::ScalarType dtype;
  std::string name;
  double limit;
};

class Forward : public ::testing::TestWithParam<Case> {};

TEST_P(Forward, LossesEqualTheReference) {
  const auto model = fixture_model(GetParam().dtype);
  const Json expected = fixture_json("expected/forward.json");
  int batches = 0;
  for (const auto& [name, entry] : expected.at("batches").items()) {
    SCOPED_TRACE(name);
    const Json& numbers = entry.at(GetParam().name);
    const Batch batch = fixture_batch(entry.at("ids").get<std::vector<std::string>>());
    // Packed equals the reference where no text is padded; with the extra stop tokens it always does.
    for (const auto layout : {BatchLayout::kPadded, BatchLayout::kPackedTextPadded, BatchLayout::kPacked}) {
      if (layout == BatchLayout::kPacked && batch.count() > 1) continue;
      const Losses l = losses(*model, batch, layout);
      EXPECT_NEAR(l.text, numbers.at("text_loss").get<double>(), GetParam().limit);
      EXPECT_NEAR(l.mel, numbers.at("mel_loss").get<double>(), GetParam().limit);
      EXPECT_NEAR(l.top1, numbers.at("mel_top1").get<double>(), 1e-7);
      ++batches;
    }
  }
  EXPECT_EQ(batches, 4 * 2 + 2);
}

TEST_P(Forward, PackedIsTheReferenceSampleBySample) {
  const auto model = fixture_model(GetParam().dtype);
  const Json ids = fixture_json("expected/forward.json").at("batches").at("b3").at("ids");
  const Batch together = fixture_batch(ids.get<std::vector<std::string>>());
  double text = 0, mel = 0;
  for (const std::string id : ids) {
    const Batch one = fixture_batch({id});
    const Losses l = losses(*model, one, BatchLayout::kPadded);
    text += l.text * static_cast<double>(one.text_tokens());
    mel += l.mel * static_cast<double>(one.mel_tokens());
  }
  const Losses packed = losses(*model, together, BatchLayout::kPacked);
  EXPECT_NEAR(packed.text, text / static_cast<double>(together.text_tokens()), GetParam().limit);
  EXPECT_NEAR(packed.mel, mel / static_cast<double>(together.mel_tokens()), GetParam().limit);
}

// All logits of a padded batch, [B, positions, classes] each.
std::pair<at::Tensor, at::Tensor> all_logits(UnifiedVoice& model, const Batch& batch) {
  const ModelInputs in = assemble_inputs(batch, model.options(), BatchLayout::kPadded, at::kCPU, model.dtype());
  const at::Tensor z =
      model.final_states(model.run_blocks(model.embed(in), in.segments)).view({in.count, in.segments.longest, -1});
  const std::int64_t text = in.text_begin[0], mel = in.mel_begin[0];
  return {model.text_head->forward(z.slice(1, text, mel)), model.mel_head->forward(z.slice(1, mel))};
}

TEST_P(Forward, LogitsOfAllPositions) {
  const at::NoGradGuard no_grad;
  const auto model = fixture_model(GetParam().dtype);
  const Json expected = fixture_json("expected/forward.json");
  const double share = GetParam().dtype == at::kDouble ? 1e-13 : 1e-6;  // sums over thousands of logits
  for (const auto& [name, entry] : expected.at("batches").items()) {
    SCOPED_TRACE(name);
    const Json& sums = entry.at(GetParam().name).at("logits_sums");
    const auto [text, mel] = all_logits(*model, fixture_batch(entry.at("ids").get<std::vector<std::string>>()));
    const auto near = [&](const at::Tensor& logits, const std::string& key) {
      const at::Tensor wide = logits.to(at::kDouble);
      const double scale = sums.at(key + "_sq").get<double>();
      EXPECT_NEAR(wide.sum().item<double>(), sums.at(key).get<double>(), 1e3 * share * std::sqrt(scale)) << key;
      EXPECT_NEAR(wide.square().sum().item<double>(), scale, share * scale * 10) << key;
    };
    near(text, "text");
    near(mel, "mel");
  }
}

TEST(ForwardLogits, OneBatchElementByElement) {
  const at::NoGradGuard no_grad;
  const auto model = fixture_model(at::kFloat);
  const Json ids = fixture_json("expected/forward.json").at("batches").at("b1").at("ids");
  const auto [text, mel] = all_logits(*model, fixture_batch(ids.get<std::vector<std::string>>()));
  for (const auto& [name, tensor] : read_safetensors(fixture("expected/forward_logits_b1.safetensors")).tensors) {
    const at::Tensor expected = tensor_to_torch(tensor).transpose(1, 2);
    const at::Tensor& actual = name == "text_float32" ? text : mel;
    ASSERT_EQ(actual.sizes(), expected.sizes());
    EXPECT_LT((actual - expected).abs().max().item<double>(), 1e-5) << name;
  }
}

TEST_P(Forward, GradientsEqualTheReference) {
  const auto model = fixture_model(GetParam().dtype);
  const Json expected = fixture_json("expected/forward.json");
  const Batch batch = fixture_batch(expected.at("batches").at("b3").at("ids").get<std::vector<std::string>>());
  const bool wide = GetParam().dtype == at::kDouble;
  for (const auto layout : {BatchLayout::kPadded, BatchLayout::kPackedTextPadded}) {
    model->zero_grad();
    const ForwardResult r = model->forward(assemble_inputs(batch, model->options(), layout, at::kCPU, model->dtype()));
    torch::autograd::backward({0.2 * r.text_loss_sum / static_cast<double>(r.text_tokens) +
                               0.8 * r.mel_loss_sum / static_cast<double>(r.mel_tokens)},
                              {});
    const auto state = state_map(*model);
    const Json& all = expected.at("gradients");
    for (const auto& [name, numbers] : all.at("per_parameter").items()) {
      const double norm = numbers.at(GetParam().name).at("l2");
      const double actual = state.at(name).grad().to(at::kDouble).norm().item<double>();
      EXPECT_NEAR(actual, norm, wide ? 1e-11 : std::max(2e-6 * norm, 1e-7)) << name;
    }
    std::set<std::string> without, expected_without;
    for (const StateEntry& entry : model->state()) {
      if (!entry.buffer && !entry.tensor.grad().defined()) without.insert(entry.name);
    }
    for (const std::string name : all.at("no_gradient")) expected_without.insert(name);
    EXPECT_EQ(without, expected_without);
    const std::string file = "expected/forward_grads_" + GetParam().name + ".safetensors";
    for (const auto& [name, tensor] : read_safetensors(fixture(file)).tensors) {
      const at::Tensor difference = state.at(name).grad() - tensor_to_torch(tensor);
      EXPECT_LT(difference.abs().max().item<double>(), wide ? 1e-12 : 2e-6) << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Forward,
                         ::testing::Values(Case{at::kDouble, "float64", 1e-12}, Case{at::kFloat, "float32", 3e-6}),
                         [](const auto& test) { return test.param.name; });

FeatureBatch feature_batch(const std::vector<std::string>& ids, at::ScalarType dtype) {
  std::vector<at::Tensor> arrays;
  std::vector<std::int64_t> lengths;
  for (const std::string& id : ids) {
    arrays.push_back(fixture_array("data/features/" + id + ".npy").to(dtype));
    lengths.push_back(arrays.back().size(0));
  }
  FeatureBatch batch;
  batch.features =
      at::zeros({static_cast<std::int64_t>(ids.size()), *std::max_element(lengths.begin(), lengths.end()), 1024},
                at::TensorOptions().dtype(dtype));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    batch.features[static_cast<std::int64_t>(i)].slice(0, 0, lengths[i]).copy_(arrays[i]);
  }
  batch.lengths = at::tensor(lengths);
  return batch;
}

class ConditioningFiles : public ::testing::TestWithParam<Case> {
 protected:
  ConditioningFiles()
      : model_(fixture_model(GetParam().dtype)),
        ids_(fixture_json("expected/conditioning.json").at("files").get<std::vector<std::string>>()) {}

  void expect(const at::Tensor& actual, const std::string& name) {
    const std::string suffix = GetParam().dtype == at::kDouble ? "_f64.npy" : "_f32.npy";
    const at::Tensor expected = fixture_array("expected/conditioning/" + name + suffix);
    ASSERT_EQ(actual.sizes(), expected.sizes()) << name;
    EXPECT_LT((actual - expected).abs().max().item<double>(), GetParam().limit) << name;
  }
  FeatureBatch item(std::size_t i) { return feature_batch({ids_[i]}, GetParam().dtype); }

  const at::NoGradGuard no_grad_;
  std::shared_ptr<UnifiedVoice> model_;
  std::vector<std::string> ids_;
};

TEST_P(ConditioningFiles, SingleItems) {
  for (std::size_t i = 0; i < ids_.size(); ++i) {
    for (const auto padding : {ConditionPadding::kReference, ConditionPadding::kClean}) {
      expect(model_->get_conditioning(item(i), padding)[0], concat("single", i, "_condition"));
      expect(model_->get_emovec(item(i), padding)[0], concat("single", i, "_emo"));
    }
  }
}

TEST_P(ConditioningFiles, PaddedBatchAsTheReference) {
  const FeatureBatch batch = feature_batch(ids_, GetParam().dtype);
  const ConditionStates states =
      model_->conditioning_encoder->forward(batch.features, batch.lengths, ConditionPadding::kReference);
  expect(states.states, "batch_conformer");
  const at::Tensor mask = fixture_array("expected/conditioning/batch_mask.npy").view({3, -1}).to(at::kBool);
  EXPECT_TRUE(states.valid.eq(mask).all().item<bool>());
  expect(model_->emo_conditioning_encoder->forward(batch.features, batch.lengths, ConditionPadding::kReference).states,
         "batch_emo_conformer");
  expect(model_->get_conditioning(batch, ConditionPadding::kReference), "batch_condition");
  expect(model_->get_emo_conditioning(batch, ConditionPadding::kReference), "batch_base_emo");
  expect(model_->get_emovec(batch, ConditionPadding::kReference), "batch_emo");
}

TEST_P(ConditioningFiles, CleanBatchIsTheSingleItems) {
  const FeatureBatch batch = feature_batch(ids_, GetParam().dtype);
  const at::Tensor condition = model_->get_conditioning(batch), emo = model_->get_emovec(batch);
  for (std::size_t i = 0; i < ids_.size(); ++i) {
    expect(condition[static_cast<std::int64_t>(i)], concat("single", i, "_condition"));
    expect(emo[static_cast<std::int64_t>(i)], concat("single", i, "_emo"));
  }
}

TEST_P(ConditioningFiles, LengthQuirkOfInference) {
  FeatureBatch quirk = item(1);
  quirk.lengths = at::tensor(std::vector<std::int64_t>{1024});
  expect(model_->get_conditioning(quirk)[0], "quirk_condition");
  expect(model_->get_emovec(quirk)[0], "quirk_emo");
}

TEST_P(ConditioningFiles, MergedEmotion) {
  expect(model_->merge_emovec(item(0), item(1), 0.6)[0], "merged_item1_alpha0.6");
  expect(model_->merge_emovec(item(0), item(1), 1.5)[0], "merged_item1_alpha1.5");
  expect(model_->merge_emovec(item(0), item(2), 0)[0], "merged_item2_alpha0");
  expect(model_->merge_emovec(item(0), item(2), 1)[0], "merged_item2_alpha1");
}

INSTANTIATE_TEST_SUITE_P(Types, ConditioningFiles,
                         ::testing::Values(Case{at::kDouble, "float64", 1e-10}, Case{at::kFloat, "float32", 3e-6}),
                         [](const auto& test) { return test.param.name; });

TEST(OnlineConditioning, GivesTheStoredFilesLosses) {
  const at::NoGradGuard no_grad;
  const auto model = fixture_model(at::kFloat);
  auto pairs = fixture_records("train_pairs.jsonl");
  const std::vector<std::string> ids =
      fixture_json("expected/forward.json").at("batches").at("b3").at("ids").get<std::vector<std::string>>();
  const Batch stored = fixture_batch(ids);
  Batch online = stored;
  online.condition.clear();
  online.emo_vec.clear();
  for (const std::string& id : ids) {
    const auto frames =
        to_float_vector(read_npy(fixture("data/features/" + pairs.at(id).at("prompt_id").get<std::string>() + ".npy")));
    online.features.insert(online.features.end(), frames.begin(), frames.end());
    online.frame_begin.push_back(static_cast<std::int64_t>(online.features.size()) / 1024);
  }
  const Losses a = losses(*model, stored, BatchLayout::kPacked), b = losses(*model, online, BatchLayout::kPacked);
  EXPECT_NEAR(a.text, b.text, 1e-6);
  EXPECT_NEAR(a.mel, b.mel, 1e-6);
}

}  // namespace
}  // namespace train_gpt_v2::testing
