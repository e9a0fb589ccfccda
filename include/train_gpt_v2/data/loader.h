#pragma once
// Reads micro-batches ahead with worker threads and delivers them in the sequence's order, whatever the worker count.
//
// At most prefetch_batches are loaded or being loaded beyond what was delivered. cursor() stands behind the last batch
// delivered. With several ranks the sequence is one for all: of every round of `ranks` batches each rank gets one, and
// its cursor stands behind the whole round, so that it is the same on all ranks. The longest batch of a round goes to
// the rank with the fewest positions so far in its window of `rounds_per_window` rounds (the lower rank in a tie).
// A bad sample ends the run at its batch (the Error of Dataset::load is thrown by next()), or, with
// data.on_bad_sample "skip", is left out of it: a batch may then even be empty (count() == 0, no targets). Skipped
// samples are named in the log (the first ten) and counted; DAT008 once they exceed data.max_bad_fraction.
// Threads: one consumer. Workers run at lower priority. Destruction waits for the sample being read, no longer.

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "train_gpt_v2/data/batch.h"
#include "train_gpt_v2/data/dataset.h"
#include "train_gpt_v2/data/sequence.h"

namespace train_gpt_v2 {

struct LoaderOptions {
  std::int64_t workers = 2;  // 0 = read in next() itself
  std::int64_t prefetch_batches = 8;
  std::uint64_t rank = 0, ranks = 1;
  std::uint64_t rounds_per_window = 1;
};

struct LoadedBatch {
  Batch batch;
  std::uint64_t epoch = 0;  // of the last batch of its round
  std::uint64_t place = 0;  // in its round: 0 with one rank
  BatchCursor after;
};

class BatchLoader {
 public:
  // The dataset must outlive the loader; `start` is what cursor() says before the first batch.
  BatchLoader(const Dataset& dataset, std::unique_ptr<BatchSequence> sequence, const LoaderOptions& options,
              BatchCursor start = {});
  ~BatchLoader();
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  // Nothing when the sequence has ended, or when a stop was requested (signals.h) while waiting: ended() tells which.
  // After an Error every further call throws it again.
  std::optional<LoadedBatch> next();

  const BatchCursor& cursor() const { return cursor_; }
  bool ended() const { return ended_; }
  double wait_seconds() const { return wait_seconds_; }      // spent waiting in next(), in all
  std::uint64_t bad_samples() const { return bad_.size(); }  // skipped so far, each counted once

 private:
  struct Round {  // what one call of next() delivers
    std::optional<PlannedBatch> own;
    std::uint64_t epoch = 0, place = 0;
    BatchCursor after;
    Batch batch;
    std::vector<std::pair<std::uint32_t, std::string>> skipped;
    std::exception_ptr failure;
    bool end = false;   // nothing to deliver: the sequence is over
    bool last = false;  // the sequence gives nothing behind this round
  };

  Round plan_round();
  std::size_t own_place(const std::vector<PlannedBatch>& batches);
  void fill(Round& round) const;
  void work();
  void account(const Round& round);
  bool wait_for_round(std::unique_lock<std::mutex>& lock);

  const Dataset& dataset_;
  std::unique_ptr<BatchSequence> sequence_;
  LoaderOptions options_;

  mutable std::mutex mutex_;
  std::condition_variable room_, ready_;
  std::map<std::uint64_t, Round> rounds_;  // loaded, by number
  std::uint64_t planned_ = 0, delivered_ = 0;
  bool planning_ = false;             // a worker is asking the sequence; only that one touches the next two
  std::vector<std::int64_t> load_;    // positions of every rank in the present window
  std::uint64_t rounds_planned_ = 0;  // of the present window
  bool sequence_over_ = false;
  bool stopping_ = false;
  std::vector<std::thread> workers_;

  BatchCursor cursor_;  // from here on: the consumer's own
  bool ended_ = false;
  double wait_seconds_ = 0;
  std::set<std::uint32_t> bad_;
  std::exception_ptr failure_;
};

}  // namespace train_gpt_v2
