#include "train_gpt_v2/data/bigram.h"

#include <cmath>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kHeldOutEvery = 10;
constexpr int kFitRounds = 200;

}  // namespace

// visit(previous, code) for every target: the codes and the stop of each sequence.
template <typename Visit>
void BigramModel::visit_targets(std::span<const CodeSequence> sequences, const Visit& visit) const {
  for (const CodeSequence& sequence : sequences) {
    std::int32_t previous = start_;
    for (const std::int32_t code : sequence) {
      if (code < 0 || code >= vocabulary_) {
        throw Error("DAT001", concat("code ", code, " lies outside 0..", vocabulary_ - 1));
      }
      visit(previous, code);
      previous = code;
    }
    visit(previous, stop_);
  }
}

BigramModel::BigramModel(std::span<const CodeSequence> training, std::int32_t vocabulary, std::int32_t start,
                         std::int32_t stop)
    : vocabulary_(vocabulary), start_(start), stop_(stop) {
  TGV2_CHECK(start >= 0 && start < vocabulary && stop >= 0 && stop < vocabulary);
  if (training.size() < 2) throw Error("DAT001", "a bigram baseline needs at least two training sequences");
  weight_ = fit_weight(training);
  count(training, counts_);
}

void BigramModel::count(std::span<const CodeSequence> sequences, Counts& counts) const {
  counts.targets.resize(static_cast<std::size_t>(vocabulary_));
  counts.contexts.resize(static_cast<std::size_t>(vocabulary_));
  visit_targets(sequences, [&](std::int32_t previous, std::int32_t code) {
    if (counts.targets[static_cast<std::size_t>(code)]++ == 0) ++counts.distinct;
    ++counts.contexts[static_cast<std::size_t>(previous)];
    ++counts.bigrams[static_cast<std::uint64_t>(previous) * static_cast<std::uint64_t>(vocabulary_) +
                     static_cast<std::uint64_t>(code)];
    ++counts.total;
  });
}

BigramModel::Probabilities BigramModel::probabilities(const Counts& counts, std::int32_t previous,
                                                      std::int32_t code) const {
  const auto seen = static_cast<double>(counts.targets[static_cast<std::size_t>(code)]);
  const auto distinct = static_cast<double>(counts.distinct);
  const double unigram = (seen + distinct / vocabulary_) / (static_cast<double>(counts.total) + distinct);
  const std::int64_t context = counts.contexts[static_cast<std::size_t>(previous)];
  if (context == 0) return {-1, unigram};
  const auto found =
      counts.bigrams.find(static_cast<std::uint64_t>(previous) * static_cast<std::uint64_t>(vocabulary_) +
                          static_cast<std::uint64_t>(code));
  const double together = found == counts.bigrams.end() ? 0 : static_cast<double>(found->second);
  return {together / static_cast<double>(context), unigram};
}

// Expectation-maximisation of the one weight; the likelihood is concave in it, so this ends at the maximum.
double BigramModel::fit_weight(std::span<const CodeSequence> training) const {
  std::vector<CodeSequence> kept, held_out;
  for (std::size_t i = 0; i < training.size(); ++i) {
    const bool is_last = i + 1 == training.size() && held_out.empty();  // fewer than ten sequences
    (i % kHeldOutEvery == kHeldOutEvery - 1 || is_last ? held_out : kept).push_back(training[i]);
  }
  Counts counts;
  count(kept, counts);
  std::vector<Probabilities> targets;
  visit_targets(held_out, [&](std::int32_t previous, std::int32_t code) {
    const Probabilities p = probabilities(counts, previous, code);
    if (p.bigram >= 0) targets.push_back(p);
  });
  if (targets.empty()) return 0;
  double weight = 0.5;
  for (int round = 0; round < kFitRounds; ++round) {
    double share = 0;
    for (const Probabilities& p : targets) share += weight * p.bigram / (weight * p.bigram + (1 - weight) * p.unigram);
    weight = share / static_cast<double>(targets.size());
  }
  // Exactly 1 would make an unseen pair infinitely surprising.
  return std::min(weight, 1.0 - 1e-6);
}

double BigramModel::bigram_loss(std::span<const CodeSequence> sequences) const {
  double sum = 0, targets = 0;
  visit_targets(sequences, [&](std::int32_t previous, std::int32_t code) {
    const Probabilities p = probabilities(counts_, previous, code);
    sum -= std::log(p.bigram < 0 ? p.unigram : weight_ * p.bigram + (1 - weight_) * p.unigram);
    ++targets;
  });
  TGV2_CHECK(targets > 0);
  return sum / targets;
}

double BigramModel::unigram_loss(std::span<const CodeSequence> sequences) const {
  double sum = 0, targets = 0;
  visit_targets(sequences, [&](std::int32_t previous, std::int32_t code) {
    sum -= std::log(probabilities(counts_, previous, code).unigram);
    ++targets;
  });
  TGV2_CHECK(targets > 0);
  return sum / targets;
}

}  // namespace train_gpt_v2
