#pragma once
// Where micro-batches come from, in order: epochs of plans without end, a fixed list (validation), or an order file.
//
// A sequence is asked by one thread at a time and hands out sample numbers only; loading is the loader's work. Each
// batch carries the cursor that stands behind it, so that a position counts what was consumed, never what was
// prefetched. Errors: DAT009 with file and line for a bad order file, DAT008 for an epoch without batches, CKP001 for a
// cursor beyond its epoch.

#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train_gpt_v2/data/sampler.h"

namespace train_gpt_v2 {

struct PlannedBatch {
  std::vector<std::uint32_t> samples;
  std::uint64_t epoch = 0;
  BatchCursor after;  // where to go on once this batch is consumed
};

class BatchSequence {
 public:
  virtual ~BatchSequence() = default;
  virtual std::optional<PlannedBatch> next() = 0;  // nothing at the end
};

// Runs across epoch ends; the following epoch is planned in the background. The sampler must outlive it.
class EpochSequence final : public BatchSequence {
 public:
  // Ends before epoch `end_epoch` begins; without it, never.
  EpochSequence(const Sampler& sampler, BatchCursor start, std::optional<std::uint64_t> end_epoch = std::nullopt);
  std::optional<PlannedBatch> next() override;

 private:
  void begin_next_epoch();

  const Sampler& sampler_;
  BatchCursor cursor_;
  std::optional<std::uint64_t> end_epoch_;
  BatchPlan plan_;
  std::future<BatchPlan> upcoming_;
};

// The batches of one plan from `first` on, then the end. The cursor counts them in `batch`, its epoch stays 0.
class ListSequence final : public BatchSequence {
 public:
  explicit ListSequence(BatchPlan plan, std::uint64_t first = 0);
  std::optional<PlannedBatch> next() override;

 private:
  BatchPlan plan_;
  std::uint64_t at_;
};

struct OrderFile {
  BatchPlan plan;    // line k = batch k
  std::string hash;  // SHA-256 of the file: resuming needs the same one
};

// JSON lines, each an array of pair ids, used verbatim (interface.md §5).
OrderFile read_order_file(const std::string& path, const Dataset& dataset);

}  // namespace train_gpt_v2
