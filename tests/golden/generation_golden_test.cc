// Generation against the reference: architecture.md §10 (c) and the fixtures' generation.json, every case.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "support/fixture_set.h"
#include "train_gpt_v2/core/text.h"
#include "train_gpt_v2/model/alignment.h"
#include "train_gpt_v2/model/generation.h"

namespace train_gpt_v2::testing {
namespace {

using Codes = std::vector<std::int64_t>;

DecodingOptions greedy(double penalty, std::optional<std::int64_t> limit, bool reference_positions = true) {
  DecodingOptions options;
  options.greedy = true;
  options.num_beams = 1;
  options.repetition_penalty = penalty;
  options.max_codes = limit;
  options.mel_position = reference_positions ? "reference_inference" : "training";
  return options;
}

// As inference_speech returns them: with the stop code when it was reached.
Codes with_stop(const SearchResult& result, std::int64_t stop) {
  Codes codes = result.codes;
  if (result.stopped) codes.push_back(stop);
  return codes;
}

struct Expected {
  bool reference_positions;
  Codes ids;
  std::vector<double> best;
};

TEST(GenerationSpec, GreedyOfTheTinyModel) {
  const auto model = filled_model(tiny_options(), at::kDouble);
  const GenerationCase one{filled("input.conds34", {1, 34, 64}, 2)[0], {10, 11, 12}, 0};
  const std::vector<Expected> rules{
      {true,
       {1, 32, 32, 8, 32, 8, 32, 32, 19, 32},
       {1.3107224, 1.3015694, 1.0512711, 1.0582194, 1.6919112, 1.2714745, 1.1493003, 1.2149859, 1.0570400, 1.3257533}},
      {false,
       {1, 9, 32, 32, 8, 32, 8, 32, 32, 19},
       {1.3107224, 1.2367980, 1.4111665, 1.0373386, 1.0863677, 1.6900818, 1.2951344, 1.1467226, 1.2114570, 1.0579627}}};
  for (const Expected& rule : rules) {
    Decoder decoder(*model, {one}, 1, 10, rule.reference_positions);
    for (std::size_t step = 0; step < rule.ids.size(); ++step) {
      const Scores logits = decoder.logits().front();
      if (step == 0) {
        const std::vector<double> first{0.3601451, 1.3107224, -0.0945157, 0.2090967};
        for (std::size_t k = 0; k < 4; ++k) EXPECT_NEAR(logits[k], first[k], 1e-7);
      }
      EXPECT_EQ(best(logits), rule.ids[step]) << step;
      EXPECT_NEAR(*std::max_element(logits.begin(), logits.end()), rule.best[step], 1e-7) << step;
      decoder.step({0}, {rule.ids[step]});
    }
    const auto result = generate(*model, {one}, greedy(1, 10, rule.reference_positions)).front();
    EXPECT_EQ(result.codes, rule.ids);
    EXPECT_FALSE(result.stopped);
  }
}

class GenerationFixtures : public ::testing::Test {
 protected:
  GenerationFixtures() : expected_(fixture_json("expected/generation.json")), model_(fixture_model(at::kFloat)) {}

  // As the reference's inference: true length unknown, so nothing is masked.
  FeatureBatch features(const std::string& id) {
    return {fixture_array("data/features/" + id + ".npy").unsqueeze(0), at::tensor(std::vector<std::int64_t>{1024})};
  }

  std::pair<at::Tensor, at::Tensor> conditioning(const Json& input) {
    const at::NoGradGuard no_grad;
    const FeatureBatch speaker = features(input.at("speaker_features"));
    return {model_->get_conditioning(speaker)[0],
            model_->merge_emovec(speaker, features(input.at("emotion_features")), input.at("emo_alpha"))[0]};
  }

  GenerationCase make_case(std::size_t i) {
    const Json& input = expected_.at("inputs").at(i);
    const auto [condition, emo_vec] = conditioning(input);
    return {conditioning_rows(*model_, condition, emo_vec), input.at("text_ids").get<std::vector<std::int32_t>>(), 0};
  }

  Json expected_;
  std::shared_ptr<UnifiedVoice> model_;
};

TEST_F(GenerationFixtures, ConditioningOfCaseOne) {
  const auto [condition, emo_vec] = conditioning(expected_.at("inputs").at(1));
  EXPECT_LT((condition - fixture_array("expected/generation_condition_case1.npy")).abs().max().item<double>(), 3e-6);
  EXPECT_LT((emo_vec - fixture_array("expected/generation_emovec_case1.npy")).abs().max().item<double>(), 3e-6);
}

TEST_F(GenerationFixtures, EveryCase) {
  std::vector<GenerationCase> inputs;
  for (std::size_t i = 0; i < expected_.at("inputs").size(); ++i) inputs.push_back(make_case(i));
  const std::int64_t stop = model_->options().stop_mel_token;
  EXPECT_EQ(code_limit(model_->options(), {}), expected_.at("default_limit").get<std::int64_t>());
  int checked = 0;
  for (const Json& one : expected_.at("cases")) {
    SCOPED_TRACE(one.at("case").dump() + " beams " + one.at("num_beams").dump() + " penalty " +
                 one.at("repetition_penalty").dump() + " limit " + one.at("max_generate_length").dump());
    const auto optional = [&](const char* key) {
      return one.at(key).is_null() ? std::nullopt : std::optional<double>(one.at(key).get<double>());
    };
    DecodingOptions options = greedy(one.at("repetition_penalty"), std::nullopt);
    if (const auto limit = optional("max_generate_length")) options.max_codes = static_cast<std::int64_t>(*limit);
    options.num_beams = one.at("num_beams");
    options.length_penalty = optional("length_penalty").value_or(1.0);
    const GenerationCase& input = inputs.at(one.at("case").get<std::size_t>());
    const SearchResult result = generate(*model_, {input}, options).front();
    EXPECT_EQ(with_stop(result, stop), one.at("codes").get<Codes>());
    EXPECT_EQ(result.stopped, one.at("stopped").get<bool>());
    EXPECT_LE(result.mean_logprob, 0);
    if (one.contains("without_kv_cache")) {
      options.mel_position = "training";
      EXPECT_EQ(with_stop(generate(*model_, {input}, options).front(), stop), one.at("without_kv_cache").get<Codes>());
    }
    ++checked;
  }
  EXPECT_EQ(checked, 21);
}

TEST_F(GenerationFixtures, TraceOfLogits) {
  const Json& trace = expected_.at("trace");
  const Json& cached = trace.at("kv_cache");
  Decoder decoder(*model_, {make_case(trace.at("case"))}, 1, 10, true);
  for (std::size_t step = 0; step < cached.at("codes").size(); ++step) {
    const Scores logits = decoder.logits().front();
    const auto wanted = cached.at("logits").at(step).get<Scores>();
    ASSERT_EQ(logits.size(), wanted.size());
    for (std::size_t k = 0; k < wanted.size(); ++k) ASSERT_NEAR(logits[k], wanted[k], 1e-5) << step << " " << k;
    decoder.step({0}, {cached.at("codes").at(step).get<std::int64_t>()});
  }
  Decoder plain(*model_, {make_case(trace.at("case"))}, 1, 10, false);
  plain.step({0}, {trace.at("no_kv_cache").at("codes").at(0).get<std::int64_t>()});
  const auto first = trace.at("no_kv_cache_logits_step1_first8").get<Scores>();
  const Scores logits = plain.logits().front();
  for (std::size_t k = 0; k < first.size(); ++k) EXPECT_NEAR(logits[k], first[k], 1e-5) << k;
}

TEST_F(GenerationFixtures, BatchOfTwo) {
  const Json& batch = expected_.at("batch_of_two_case0_conditioning");
  std::vector<GenerationCase> cases(2, make_case(0));
  for (std::size_t i = 0; i < 2; ++i) cases[i].text = batch.at("texts").at(i).get<std::vector<std::int32_t>>();
  const std::int64_t stop = model_->options().stop_mel_token, limit = batch.at("max_generate_length");
  for (const int penalty : {1, 10}) {
    const auto results = generate(*model_, cases, greedy(penalty, limit));
    for (std::size_t i = 0; i < 2; ++i) {
      Codes row = with_stop(results[i], stop);
      row.resize(static_cast<std::size_t>(limit), stop);  // the reference fills finished rows with the stop code
      EXPECT_EQ(row, batch.at(concat("greedy_penalty_", penalty)).at(i).get<Codes>()) << penalty << " row " << i;
    }
  }
}

TEST_F(GenerationFixtures, BatchesGiveWhatEachCaseGivesAlone) {
  std::vector<GenerationCase> cases{make_case(0), make_case(1), make_case(2)};
  for (std::size_t i = 0; i < 3; ++i) cases[i].stream = i;
  DecodingOptions sampled;  // as shipped: beam sampling
  sampled.max_codes = 25;
  for (const DecodingOptions& options : {greedy(10, 25), sampled}) {
    const auto together = generate(*model_, cases, options);
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(together[i].codes, generate(*model_, {cases[i]}, options).front().codes) << i;
    }
  }
}

TEST_F(GenerationFixtures, SamplingIsAFunctionOfSeedAndStream) {
  GenerationCase one = make_case(1);
  for (const std::int64_t beams : {1, 3}) {
    DecodingOptions options;
    options.num_beams = beams;
    options.max_codes = 20;
    options.repetition_penalty = 1;
    options.temperature = 2;
    options.top_k = 0;
    options.top_p = 1;
    const Codes first = generate(*model_, {one}, options).front().codes;
    EXPECT_EQ(generate(*model_, {one}, options).front().codes, first);
    options.seed = 99;
    EXPECT_NE(generate(*model_, {one}, options).front().codes, first);
    options.seed = DecodingOptions().seed;
    one.stream = 7;
    EXPECT_NE(generate(*model_, {one}, options).front().codes, first);
    one.stream = 0;
    options.temperature = 1e-3;  // so cold that it is greedy
    options.top_k = 30;
    if (beams == 1) {
      EXPECT_EQ(generate(*model_, {one}, options).front().codes,
                generate(*model_, {one}, greedy(1, 20, false)).front().codes);
    }
  }
}

TEST_F(GenerationFixtures, Latents) {
  const Json& wanted = expected_.at("latents");
  const Json& input = expected_.at("inputs").at(wanted.at("case").get<std::size_t>());
  const auto [condition, emo_vec] = conditioning(input);
  const Utterance utterance{input.at("text_ids").get<std::vector<std::int32_t>>(),
                            wanted.at("codes").get<std::vector<std::int32_t>>(), condition, emo_vec};
  const at::Tensor expected = fixture_array("expected/generation_latents.npy");
  const at::Tensor actual = latents(*model_, utterance);
  ASSERT_EQ(actual.sizes(), expected.sizes());
  EXPECT_LT((actual - expected).abs().max().item<double>(), 1e-5);
}

TEST_F(GenerationFixtures, AlignmentIsAMapOfCodesToText) {
  const Json& input = expected_.at("inputs").at(1);
  const auto [condition, emo_vec] = conditioning(input);
  const Utterance utterance{
      input.at("text_ids").get<std::vector<std::int32_t>>(), {45, 58, 163, 176}, condition, emo_vec};
  const Alignment alignment = text_alignment(*model_, utterance);
  ASSERT_EQ(alignment.weights.sizes(), (std::vector<std::int64_t>{4, 13}));
  EXPECT_LT((alignment.weights.sum(1) - 1).abs().max().item<double>(), 1e-5);
  EXPECT_GE(alignment.weights.min().item<double>(), 0);
  const auto [monotonicity, coverage] = path_measures(alignment.weights);
  EXPECT_EQ(monotonicity, alignment.monotonicity);
  EXPECT_EQ(coverage, alignment.coverage);
  EXPECT_LT(alignment.layer, 2);
  EXPECT_LT(alignment.head, 2);
}

}  // namespace
}  // namespace train_gpt_v2::testing
