#pragma once
// Which samples form which micro-batch, in which order: a pure function of (settings, lengths, epoch), planned whole so
// that any position is reached in O(1) and nothing is replayed on resume (algorithms.md §9).
//
//   mega_batch  permute; cut into pools of pool x batch_size; sort each by length; cut into batches; shuffle batches
//   buckets     permute; batches of equal bucket (first boundary >= code length of the target); shuffle batches
//   shuffle     permute; cut
//   sequential  as in the manifests
// Nothing is dropped unless drop_last, which leaves out batches that ended for want of samples. With batch_tokens a
// batch also ends before its positions exceed the budget: prefix + text + 2 + codes + 2 per sample, with the maxima of
// the batch where the layout is padded. Replay samples are added to every batch so that each run of batches holds their
// share to within one sample; batch_size counts them. Threads: const members may be called from any thread.

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "train_gpt_v2/config/options.h"
#include "train_gpt_v2/data/dataset.h"

namespace train_gpt_v2 {

// A list of micro-batches.
struct BatchPlan {
  std::vector<std::uint32_t> samples;
  std::vector<std::uint64_t> begin{0};

  std::size_t size() const { return begin.size() - 1; }
  std::span<const std::uint32_t> batch(std::size_t i) const {
    return {samples.data() + begin[i], samples.data() + begin[i + 1]};
  }
  void add(std::span<const std::uint32_t> batch);
  std::string hash() const;  // SHA-256 of the order
};

// Everything that determines a plan besides the data. Equal settings and data give equal plans in every build.
struct PlanSettings {
  std::string mode = "mega_batch";
  std::vector<std::int64_t> boundaries;
  std::int64_t batch_tokens = 0;  // 0 = no budget
  std::int64_t pool = 50;
  bool drop_last = false;
  std::int64_t batch_size = 64;
  bool padded = false;
  std::uint64_t seed = 0;
  std::vector<double> replay_shares;

  static PlanSettings from(const Options& options);
  nlohmann::json save_state() const;
  static PlanSettings load_state(const nlohmann::json& state);
  bool operator==(const PlanSettings&) const = default;
};

// A part of an epoch that was trained under other settings: its first `batches` batches were consumed.
struct ConsumedPart {
  PlanSettings settings;
  std::uint64_t batches = 0;
  bool operator==(const ConsumedPart&) const = default;
};

// The position in the endless sequence of epochs: batch `batch` of epoch `epoch` comes next.
struct BatchCursor {
  std::uint64_t epoch = 0, batch = 0;
  std::uint64_t consumed = 0;              // micro-batches since the run began
  std::vector<ConsumedPart> earlier = {};  // of this epoch, before the settings were changed

  nlohmann::json save_state() const;
  static BatchCursor load_state(const nlohmann::json& state);  // CKP001 for anything malformed
  bool operator==(const BatchCursor&) const = default;
};

class Sampler {
 public:
  // The dataset must outlive the sampler. CFG001 when the settings do not fit the dataset's groups.
  Sampler(const Dataset& dataset, PlanSettings settings);

  // With `earlier`, only the samples which those parts left unconsumed.
  BatchPlan plan(std::uint64_t epoch, const std::vector<ConsumedPart>& earlier = {}) const;

  // The cursor that goes on from `cursor` (reached under other settings) with the epoch's unconsumed samples.
  BatchCursor carry_over(const BatchCursor& cursor, const PlanSettings& previous) const;

  const PlanSettings& settings() const { return settings_; }
  const Dataset& dataset() const { return dataset_; }

 private:
  std::vector<std::uint32_t> remaining(std::uint64_t epoch, const std::vector<ConsumedPart>& earlier) const;

  const Dataset& dataset_;
  PlanSettings settings_;
};

// Every sample of the epoch once, in the manifests' order: validation, eval.
BatchPlan sequential_plan(const Dataset& dataset, std::int64_t batch_size);
// `count` batches spread evenly over the plan, in its order; the whole plan when it has no more.
BatchPlan spread(const BatchPlan& plan, std::size_t count);

struct PlanStatistics {
  std::uint64_t samples = 0, batches = 0, replay_samples = 0;
  std::uint64_t positions = 0;      // without padding
  std::uint64_t longest_batch = 0;  // number of the batch with the most padded positions
  std::uint64_t longest_positions = 0;
  double padding_share = 0;         // of padded positions, in this plan
  double random_padding_share = 0;  // the same sizes of batch, filled at random
  double speakers_per_batch = 0, random_speakers_per_batch = 0;
  double length_correlation = 0;  // of the mean lengths of neighbouring batches (lag 1)
};

// The comparison with random batches uses its own random numbers; the plan is not touched.
PlanStatistics plan_statistics(const Dataset& dataset, const BatchPlan& plan);

}  // namespace train_gpt_v2
