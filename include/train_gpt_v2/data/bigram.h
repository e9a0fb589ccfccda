#pragma once
// The baseline that a demo model must beat: an interpolated bigram of the codes, as honest as it can be made.
//
// Each sequence counts as start, its codes, stop. P(c | p) = w * n(p, c) / n(p) + (1 - w) * U(c), where U is the
// unigram with Witten-Bell smoothing over the vocabulary, U(c) = (n(c) + T / V) / (N + T) with T different codes seen,
// so that an unseen code costs a finite amount; after an unseen p it is U alone. The weight w is fitted by maximum
// likelihood on every tenth sequence with counts from the others; then all sequences are counted.
// Scores are nats per target over exactly the targets of mel_loss: every code and one stop per sequence.
// Errors: DAT001 for a code outside [0, vocabulary), DAT001 for fewer than two training sequences.

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace train_gpt_v2 {

using CodeSequence = std::vector<std::int32_t>;  // without start and stop

class BigramModel {
 public:
  // `vocabulary`: all codes including start and stop (number_mel_codes).
  BigramModel(std::span<const CodeSequence> training, std::int32_t vocabulary, std::int32_t start, std::int32_t stop);

  double bigram_loss(std::span<const CodeSequence> sequences) const;   // nats per target
  double unigram_loss(std::span<const CodeSequence> sequences) const;  // nats per target
  double weight() const { return weight_; }                            // w, in [0, 1)

 private:
  struct Counts {
    std::vector<std::int64_t> targets;                        // n(c)
    std::vector<std::int64_t> contexts;                       // n(p)
    std::unordered_map<std::uint64_t, std::int64_t> bigrams;  // n(p, c), key p * V + c
    std::int64_t total = 0, distinct = 0;                     // N, T
  };
  struct Probabilities {
    double bigram, unigram;  // bigram < 0: the context was never seen
  };
  template <typename Visit>
  void visit_targets(std::span<const CodeSequence> sequences, const Visit& visit) const;
  void count(std::span<const CodeSequence> sequences, Counts& counts) const;
  Probabilities probabilities(const Counts& counts, std::int32_t previous, std::int32_t code) const;
  double fit_weight(std::span<const CodeSequence> training) const;

  std::int32_t vocabulary_, start_, stop_;
  Counts counts_;
  double weight_ = 0;
};

}  // namespace train_gpt_v2
