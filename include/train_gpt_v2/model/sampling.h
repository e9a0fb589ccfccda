#pragma once
// From the scores of one step to the next code: the reference's processors and draws, on plain numbers.
//
// Scores are natural logarithms up to a constant; removed candidates are -infinity. Order in the reference: repetition
// penalty, typical, temperature, top-k, top-p (architecture.md §5.3). `keep` is the least number of candidates that a
// filter leaves: 2 with beams, 1 without. Sampling draws from its own RandomStream. All functions are pure otherwise.

#include <cstdint>
#include <span>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/core/random.h"

namespace train_gpt_v2 {

using Scores = std::vector<double>;

void to_log_softmax(Scores& scores);

// Every code in `seen` once: score < 0 is multiplied by the penalty, else divided.
void penalise_repetition(Scores& scores, std::span<const std::int64_t> seen, double penalty);

void keep_typical(Scores& scores, double mass, std::int64_t keep);
void keep_top_k(Scores& scores, std::int64_t k, std::int64_t keep);
void keep_top_p(Scores& scores, double p, std::int64_t keep);

// Typical, temperature, top-k, top-p as the options say.
void warp(Scores& scores, const DecodingOptions& options, std::int64_t keep);

// Index of the largest; the first of equals.
std::int64_t best(const Scores& scores);
// One index with probability softmax(scores).
std::int64_t draw(const Scores& scores, RandomStream& random);
// Up to `count` different indices, drawn one after the other without putting back; removed ones never.
std::vector<std::int64_t> draw_distinct(const Scores& scores, std::int64_t count, RandomStream& random);
// The `count` largest, best first; the lower index first among equals.
std::vector<std::int64_t> largest(const Scores& scores, std::int64_t count);

}  // namespace train_gpt_v2
