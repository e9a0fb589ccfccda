#pragma once
// Validation: a fixed list of batches, token-weighted, without gradients or random numbers (algorithms.md §10).
//
// The batches are the manifests' order cut into validation.batch_size samples (as the Python trainer; in the padded
// layout the composition of a batch matters); max_batches takes an even stride of them, the same at every validation.
// Splits by language and by whether the speaker occurs in training come from the manifests; text_usage_gap scores every
// sample a second time with the next sample's text. With several ranks each takes its share of the batches; the sums
// are those of all, so every rank gets the same results.

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/sampler.h"
#include "train_gpt_v2/train/engine.h"
#include "train_gpt_v2/train/monitors.h"
#include "train_gpt_v2/train/ranks.h"

namespace train_gpt_v2 {

struct EvaluatorOutput {
  std::vector<ValidationResult> results;  // split "all" first
  std::optional<double> text_usage_gap;   // mel loss with another text minus with the own one
};

class Evaluator {
 public:
  // `train` may be null; it tells which speakers were seen.
  Evaluator(const Dataset& validation, const Dataset* train, const Options& options);

  // `stop` is polled between batches; when it answers true, on any rank, the results are marked incomplete. A call of
  // all ranks, which also fail together. Samples that cannot be used are left out and named once, where
  // data.on_bad_sample says so; DAT008 for too many of them.
  EvaluatorOutput run(Engine& engine, const std::string& weights, const std::function<bool()>& stop, Ranks& ranks);
  std::size_t batches() const { return plan_.size(); }

 private:
  std::vector<std::string> splits_of(std::uint32_t sample) const;
  Batch first_usable_after(std::size_t i) const;

  const Dataset& validation_;
  const Dataset* train_;
  Options options_;
  BatchPlan plan_;
  std::set<std::string> splits_;  // all that occur
  std::set<std::uint32_t> bad_;   // samples that could not be used
};

}  // namespace train_gpt_v2
