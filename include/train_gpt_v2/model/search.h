#pragma once
// The search for one case's codes, step by step, without the network: greedy, sampling, beam search, beam sampling.
//
// The caller computes logits for the rows (one per beam) and hands them to advance(), which answers with the codes to
// feed next and the row each continues from. Beam search is HuggingFace's: 2W candidates, a stop code at rank >= W is
// skipped, hypotheses score sum / length^length_penalty with the stop counted, open beams join at the limit.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/model/sampling.h"

namespace train_gpt_v2 {

struct SearchResult {
  std::vector<std::int64_t> codes;  // without the stop code
  bool stopped = false;             // the stop code ended it, not the limit
  double mean_logprob = 0;          // of the chosen codes and the stop, under the model's own distribution
};

struct SearchStep {
  std::vector<std::int64_t> source;  // per row: which row it continues
  std::vector<std::int64_t> codes;   // per row: the code to feed
};

class Search {
 public:
  virtual ~Search() = default;
  // `logits`: one span of scores per row. `limit` counts codes and the stop.
  virtual SearchStep advance(const std::vector<Scores>& logits) = 0;
  bool done() const { return done_; }
  virtual SearchResult result() const = 0;

 protected:
  bool done_ = false;
};

struct SearchSetup {
  DecodingOptions options;
  std::int64_t stop = 0;
  std::int64_t limit = 0;                 // most codes, the stop included
  std::vector<std::int64_t> always_seen;  // codes that the repetition penalty counts from the start
  std::uint64_t stream = 0;               // of the random numbers; one per case
};

// num_beams 1: one row. Otherwise num_beams rows that start equal.
std::unique_ptr<Search> make_search(const SearchSetup& setup);

}  // namespace train_gpt_v2
