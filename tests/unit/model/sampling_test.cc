// Processors, draws and searches on small numbers worked out by hand.

#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "support/model_fill.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/model/alignment.h"
#include "train_gpt_v2/model/generation.h"

namespace train_gpt_v2::testing {
namespace {

using Indices = std::vector<std::int64_t>;
constexpr double kGone = -std::numeric_limits<double>::infinity();

Scores logs(std::initializer_list<double> shares) {
  Scores scores;
  for (const double p : shares) scores.push_back(std::log(p));
  return scores;
}

Indices kept(const Scores& scores) {
  Indices indices;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] != kGone) indices.push_back(static_cast<std::int64_t>(i));
  }
  return indices;
}

TEST(Processors, RepetitionPenaltyCountsEachCodeOnce) {
  Scores scores{2, -2, 3, 0};
  penalise_repetition(scores, Indices{0, 1, 1, 0, 99, -1}, 4);
  EXPECT_EQ(scores, (Scores{0.5, -8, 3, 0}));
}

TEST(Processors, TopKKeepsTiesAndTheMinimum) {
  Scores scores{5, 1, 4, 4, 0};
  keep_top_k(scores, 2, 1);
  EXPECT_EQ(kept(scores), (Indices{0, 2, 3}));
  scores = {5, 1, 4, 3};
  keep_top_k(scores, 1, 2);
  EXPECT_EQ(kept(scores), (Indices{0, 2}));
  keep_top_k(scores, 0, 1);  // off
  EXPECT_EQ(kept(scores), (Indices{0, 2}));
}

TEST(Processors, TopPRemovesTheTail) {
  // From below: 0.05 and 0.2 do not exceed 0.21, but 0.2 exceeds 0.19.
  Scores scores = logs({0.5, 0.05, 0.3, 0.15});
  keep_top_p(scores, 0.79, 1);
  EXPECT_EQ(kept(scores), (Indices{0, 2}));
  scores = logs({0.5, 0.05, 0.3, 0.15});
  keep_top_p(scores, 0.81, 1);
  EXPECT_EQ(kept(scores), (Indices{0, 2, 3}));
  scores = logs({0.97, 0.01, 0.01, 0.01});
  keep_top_p(scores, 0.1, 2);
  EXPECT_EQ(kept(scores).size(), 2u);
}

TEST(Processors, TypicalPrefersTheExpectedSurprise) {
  // Entropy of {0.9, 0.05, 0.05} is 0.394; surprises 0.105, 3.0, 3.0: the first is nearest.
  Scores scores = logs({0.9, 0.05, 0.05});
  keep_typical(scores, 0.5, 1);
  EXPECT_EQ(kept(scores), (Indices{0}));
  // {0.4, 0.3, 0.2, 0.1}: entropy 1.280; surprises 0.916, 1.204, 1.609, 2.303; nearest is the second, then the third.
  scores = logs({0.4, 0.3, 0.2, 0.1});
  keep_typical(scores, 0.35, 1);
  EXPECT_EQ(kept(scores), (Indices{1, 2}));
  scores = logs({0.4, 0.3, 0.2, 0.1});
  keep_typical(scores, 0.29, 1);
  EXPECT_EQ(kept(scores), (Indices{1}));
}

TEST(Draws, FollowTheDistribution) {
  RandomStream random(1, 2);
  const Scores scores = logs({0.5, 0.3, 0.2});
  std::array<int, 3> count{};
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) ++count[draw(scores, random)];
  EXPECT_NEAR(count[0] / double{kDraws}, 0.5, 0.015);  // four standard deviations
  EXPECT_NEAR(count[1] / double{kDraws}, 0.3, 0.015);
}

TEST(Draws, PairsFollowSuccessiveDraws) {
  RandomStream random(3, 2);
  const Scores scores = logs({0.5, 0.3, 0.2});
  int pair = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) pair += draw_distinct(scores, 2, random) == Indices{1, 0};
  EXPECT_NEAR(pair / double{kDraws}, 0.3 * 0.5 / 0.7, 0.015);  // first 1, then 0 of what is left
  EXPECT_EQ(draw_distinct({1, kGone, 2, kGone}, 4, random).size(), 2u);
}

TEST(Draws, LargestBreaksTiesByIndex) {
  EXPECT_EQ(largest({1, 3, 2, 3, kGone}, 3), (Indices{1, 3, 2}));
  EXPECT_EQ(best({1, 3, 2, 3}), 1);
}

SearchSetup setup(std::int64_t beams, std::int64_t limit, double length_penalty = 0) {
  SearchSetup s;
  s.options.greedy = true;
  s.options.num_beams = beams;
  s.options.repetition_penalty = 1;
  s.options.length_penalty = length_penalty;
  s.stop = 2;
  s.limit = limit;
  return s;
}

TEST(BeamSearch, FindsWhatGreedyMisses) {
  // First step: 0 (0.6) before 1 (0.4). After 0 everything is even; after 1 the stop is nearly sure.
  const auto search = make_search(setup(2, 5));
  SearchStep step = search->advance({logs({0.6, 0.4 - 1e-9, 1e-9}), logs({0.6, 0.4 - 1e-9, 1e-9})});
  EXPECT_EQ(step.codes, (Indices{0, 1}));
  EXPECT_EQ(step.source, (Indices{0, 0}));
  step = search->advance({logs({0.34, 0.33, 0.33}), logs({0.005, 0.005, 0.99})});
  EXPECT_FALSE(search->done());  // one hypothesis of two
  EXPECT_EQ(step.source, (Indices{0, 0}));
  search->advance({logs({0.01, 0.01, 0.98}), logs({0.01, 0.01, 0.98})});
  ASSERT_TRUE(search->done());
  const SearchResult result = search->result();
  EXPECT_EQ(result.codes, (Indices{1}));
  EXPECT_TRUE(result.stopped);
  EXPECT_NEAR(result.mean_logprob, (std::log(0.4) + std::log(0.99)) / 2, 1e-6);
}

TEST(BeamSearch, OpenBeamsJoinAtTheLimit) {
  const auto search = make_search(setup(2, 1));
  search->advance({logs({0.5, 0.4, 0.1}), logs({0.5, 0.4, 0.1})});
  ASSERT_TRUE(search->done());
  EXPECT_EQ(search->result().codes, (Indices{0}));
  EXPECT_FALSE(search->result().stopped);
}

TEST(SinglePath, StopsAtStopAndLimit) {
  const auto search = make_search(setup(1, 3));
  search->advance({{0, 1, 0}});
  EXPECT_FALSE(search->done());
  search->advance({{0, 0, 1}});
  EXPECT_TRUE(search->done());
  EXPECT_EQ(search->result().codes, (Indices{1}));
  EXPECT_TRUE(search->result().stopped);
}

TEST(Generate, RefusesWhatTheModelCannotHold) {
  const auto model = filled_model(tiny_options(), at::kFloat);
  GenerationCase one{filled("input.conds34", {34, 64}, 2), {10, 51}, 0};
  const auto code_of = [&] {
    try {
      generate(*model, {one}, {});
    } catch (const Error& error) {
      return error.code();
    }
    return std::string("none");
  };
  EXPECT_EQ(code_of(), "DAT042");
  one.text.assign(41, 10);
  EXPECT_EQ(code_of(), "DAT043");
  one.text = {10};
  model->mel_head->bias.mutable_data_ptr<float>()[3] = std::nanf("");
  EXPECT_EQ(code_of(), "NUM020");
}

TEST(Alignment, MeasuresOfAPath) {
  const auto map = [](const Indices& path, std::int64_t text) {
    at::Tensor weights = at::full({static_cast<std::int64_t>(path.size()), text}, 0.1f);
    for (std::size_t i = 0; i < path.size(); ++i) weights[static_cast<std::int64_t>(i)][path[i]] = 1.0f;
    return weights;
  };
  EXPECT_EQ(path_measures(map({0, 0, 1, 2}, 3)), (std::pair{1.0, 1.0}));
  EXPECT_EQ(path_measures(map({2, 1, 1, 0}, 4)), (std::pair{1.0 / 3, 0.75}));
  EXPECT_EQ(path_measures(map({1}, 2)), (std::pair{1.0, 0.5}));
}

}  // namespace
}  // namespace train_gpt_v2::testing
