#include "train_gpt_v2/data/loader.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kNice = 10;  // compute threads come first
constexpr std::size_t kNamedInLog = 10;
constexpr auto kPollInterval = std::chrono::milliseconds(50);

}  // namespace

BatchLoader::BatchLoader(const Dataset& dataset, std::unique_ptr<BatchSequence> sequence, const LoaderOptions& options,
                         BatchCursor start)
    : dataset_(dataset), sequence_(std::move(sequence)), options_(options), cursor_(std::move(start)) {
  TGV2_CHECK(options_.ranks > 0 && options_.rank < options_.ranks);
  options_.prefetch_batches = std::max<std::int64_t>(options_.prefetch_batches, 1);
  for (std::int64_t i = 0; i < options_.workers; ++i) workers_.emplace_back([this] { work(); });
}

BatchLoader::~BatchLoader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  room_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// Takes one batch per rank from the sequence and keeps this rank's. One thread at a time; planning an epoch may take
// seconds, so not under the mutex.
BatchLoader::Round BatchLoader::plan_round() {
  Round round;
  try {
    for (std::uint64_t rank = 0; rank < options_.ranks; ++rank) {
      std::optional<PlannedBatch> planned = sequence_->next();
      if (!planned) {
        round.end = !round.own;
        round.last = true;
        break;
      }
      round.after = planned->after;
      if (rank == options_.rank) round.own = std::move(planned);
    }
  } catch (...) {
    round.failure = std::current_exception();
    round.last = true;
  }
  return round;
}

void BatchLoader::fill(Round& round) const {
  if (!round.own || round.failure) return;
  try {
    for (const std::uint32_t sample : round.own->samples) {
      {
        const std::lock_guard lock(mutex_);
        if (stopping_) return;
      }
      try {
        dataset_.load(sample, round.batch);
      } catch (const Error& error) {
        if (!dataset_.skips_bad_samples() || error.status() == ExitStatus::kInternal) throw;
        round.skipped.emplace_back(
            sample, concat(error.place(), ": ", error.message(), " (", join(error.details(), "; "), ")"));
      }
    }
  } catch (...) {
    round.failure = std::current_exception();
  }
}

void BatchLoader::work() {
  ::pthread_setname_np(::pthread_self(), "data loader");
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNice);  // Linux: of this thread alone
  std::unique_lock lock(mutex_);
  while (true) {
    room_.wait(lock, [this] {
      return stopping_ || sequence_over_ ||
             (!planning_ && planned_ < delivered_ + static_cast<std::uint64_t>(options_.prefetch_batches));
    });
    if (stopping_ || sequence_over_) return;
    const std::uint64_t number = planned_++;
    planning_ = true;
    lock.unlock();
    Round round = plan_round();
    lock.lock();
    planning_ = false;
    sequence_over_ = round.last;
    lock.unlock();
    room_.notify_all();
    fill(round);
    lock.lock();
    rounds_.emplace(number, std::move(round));
    if (number == delivered_) ready_.notify_one();
  }
}

// False when a stop was requested before the round was there.
bool BatchLoader::wait_for_round(std::unique_lock<std::mutex>& lock) {
  const auto begin = Clock::now();
  bool there = true;
  while (!rounds_.contains(delivered_)) {
    ready_.wait_for(lock, kPollInterval);
    if (!rounds_.contains(delivered_) && stop_requested() != ExitStatus::kOk) {
      there = false;
      break;
    }
  }
  wait_seconds_ += std::chrono::duration<double>(Clock::now() - begin).count();
  return there;
}

// Skipped samples are counted where they are consumed, so that the count does not depend on the workers.
void BatchLoader::account(const Round& round) {
  bool more = false;
  for (const auto& [sample, message] : round.skipped) {
    if (!bad_.insert(sample).second) continue;
    more = true;
    if (bad_.size() <= kNamedInLog) log_warning("data", "left out: ", message);
    if (bad_.size() == kNamedInLog) log_warning("data", "further samples that are left out are only counted");
  }
  if (more) dataset_.check_bad_fraction(dataset_.bad_at_open() + bad_.size());
}

std::optional<LoadedBatch> BatchLoader::next() {
  if (failure_) std::rethrow_exception(failure_);
  if (ended_) return std::nullopt;
  Round round;
  if (workers_.empty()) {
    ended_ = sequence_over_;
    if (ended_) return std::nullopt;
    const auto begin = Clock::now();
    round = plan_round();
    sequence_over_ = round.last;
    fill(round);
    wait_seconds_ += std::chrono::duration<double>(Clock::now() - begin).count();
  } else {
    std::unique_lock lock(mutex_);
    if (sequence_over_ && delivered_ == planned_) {
      ended_ = true;
      return std::nullopt;
    }
    if (!wait_for_round(lock)) return std::nullopt;
    round = std::move(rounds_.extract(delivered_).mapped());
    ++delivered_;
    room_.notify_one();
  }
  try {
    if (round.failure) std::rethrow_exception(round.failure);
    account(round);
  } catch (...) {
    failure_ = std::current_exception();
    throw;
  }
  if (round.end) {
    ended_ = true;
    return std::nullopt;
  }
  cursor_ = round.after;
  return LoadedBatch{std::move(round.batch), round.own->epoch, round.after};
}

}  // namespace train_gpt_v2
