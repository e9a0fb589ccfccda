#include "train_gpt_v2/data/bigram.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/random.h"

namespace train_gpt_v2 {
namespace {

constexpr std::int32_t kVocabulary = 14, kStart = 12, kStop = 13;

// A Markov chain over 0..8, so that the bigram is worth something.
std::vector<CodeSequence> chain(std::size_t count, std::uint64_t seed) {
  RandomStream stream(seed, 0);
  std::vector<CodeSequence> sequences(count);
  for (CodeSequence& sequence : sequences) {
    auto code = static_cast<std::int32_t>(stream.below(9));
    const std::size_t length = 3 + stream.below(12);
    for (std::size_t i = 0; i < length; ++i) {
      sequence.push_back(code);
      code = stream.below(4) == 0 ? static_cast<std::int32_t>(stream.below(9)) : (code * 2 + 1) % 9;
    }
  }
  return sequences;
}

// The definition written out with maps of pairs, and the weight by a search over a fine grid.
struct BruteForce {
  std::map<int, double> targets, contexts;
  std::map<std::pair<int, int>, double> pairs;
  double total = 0;

  static std::vector<std::pair<int, int>> events(const CodeSequence& sequence) {
    std::vector<int> whole{kStart};
    whole.insert(whole.end(), sequence.begin(), sequence.end());
    whole.push_back(kStop);
    std::vector<std::pair<int, int>> result;
    for (std::size_t i = 1; i < whole.size(); ++i) result.emplace_back(whole[i - 1], whole[i]);
    return result;
  }
  void add(const CodeSequence& sequence) {
    for (const auto& [previous, code] : events(sequence)) {
      ++targets[code];
      ++contexts[previous];
      ++pairs[{previous, code}];
      ++total;
    }
  }
  double unigram(int code) {
    const auto types = static_cast<double>(targets.size());
    const double seen = targets.count(code) ? targets.at(code) : 0;
    return (seen + types / kVocabulary) / (total + types);
  }
  double loss(const std::vector<CodeSequence>& sequences, double weight) {
    double sum = 0, count = 0;
    for (const CodeSequence& sequence : sequences) {
      for (const auto& event : events(sequence)) {
        const double u = unigram(event.second);
        const bool known = contexts.count(event.first) > 0;
        const double joint = pairs.count(event) ? pairs.at(event) : 0;
        sum -= std::log(known ? weight * joint / contexts.at(event.first) + (1 - weight) * u : u);
        ++count;
      }
    }
    return sum / count;
  }
};

TEST(Bigram, EqualsTheDefinitionWrittenOut) {
  const std::vector<CodeSequence> training = chain(57, 1), validation = chain(11, 2);
  const BigramModel model(training, kVocabulary, kStart, kStop);

  BruteForce part, all;
  std::vector<CodeSequence> held_out;
  for (std::size_t i = 0; i < training.size(); ++i) {
    if (i % 10 == 9) {
      held_out.push_back(training[i]);
    } else {
      part.add(training[i]);
    }
    all.add(training[i]);
  }
  double best = 0;
  for (int i = 1; i < 10000; ++i) {
    if (part.loss(held_out, i / 10000.0) < part.loss(held_out, best)) best = i / 10000.0;
  }
  EXPECT_NEAR(model.weight(), best, 1e-4);
  EXPECT_NEAR(model.bigram_loss(validation), all.loss(validation, model.weight()), 1e-12);
  EXPECT_NEAR(model.unigram_loss(validation), all.loss(validation, 0), 1e-12);
  EXPECT_LT(model.bigram_loss(validation), model.unigram_loss(validation) - 0.3);
}

TEST(Bigram, UnigramProbabilitiesSumToOne) {
  const std::vector<CodeSequence> training = chain(20, 3);
  const BigramModel model(training, kVocabulary, kStart, kStop);
  // The loss of the sequence [c] is (-log U(c) - log U(stop)) / 2, that of [] is -log U(stop).
  const double stop = model.unigram_loss(std::vector<CodeSequence>{{}});
  double sum = 0;
  for (std::int32_t code = 0; code < kVocabulary; ++code) {
    sum += std::exp(stop - 2 * model.unigram_loss(std::vector<CodeSequence>{{code}}));
  }
  EXPECT_NEAR(sum, 1.0, 1e-12);
}

TEST(Bigram, UnseenCodesCostAFiniteAmount) {
  const std::vector<CodeSequence> training{{1, 2, 1, 2}, {1, 2, 1, 2}};
  const BigramModel model(training, kVocabulary, kStart, kStop);
  const double loss = model.bigram_loss(std::vector<CodeSequence>{{7, 8, 1}});
  EXPECT_TRUE(std::isfinite(loss));
  EXPECT_GT(loss, model.bigram_loss(training));
  EXPECT_LT(model.weight(), 1.0);
}

TEST(Bigram, RefusesCodesOutsideTheVocabularyAndTooLittleData) {
  const std::vector<CodeSequence> good{{1}, {2}}, bad{{1}, {14}}, negative{{1}, {-1}}, one{{1, 2, 3}};
  EXPECT_THROW(BigramModel(bad, kVocabulary, kStart, kStop), Error);
  EXPECT_THROW(BigramModel(negative, kVocabulary, kStart, kStop), Error);
  EXPECT_THROW(BigramModel(one, kVocabulary, kStart, kStop), Error);
  EXPECT_THROW(BigramModel(good, kVocabulary, kStart, kStop).bigram_loss(bad), Error);
}

}  // namespace
}  // namespace train_gpt_v2
