#include "train_gpt_v2/data/loader.h"

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <numeric>

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

// Which of a round's batches is this rank's. Every rank computes the same from the same plan.
std::size_t BatchLoader::own_place(const std::vector<PlannedBatch>& batches) {
  if (rounds_planned_++ % options_.rounds_per_window == 0) load_.assign(options_.ranks, 0);
  std::vector<std::int64_t> positions;
  for (const PlannedBatch& batch : batches) {
    std::int64_t sum = 0;
    for (const std::uint32_t sample : batch.samples) {
      const SampleInfo info = dataset_.info(sample);
      sum += info.text_length + info.code_length;
    }
    positions.push_back(sum);
  }
  std::vector<std::size_t> by_size(batches.size()), by_load(batches.size());
  std::iota(by_size.begin(), by_size.end(), 0);
  std::iota(by_load.begin(), by_load.end(), 0);
  std::stable_sort(by_size.begin(), by_size.end(), [&](auto a, auto b) { return positions[a] > positions[b]; });
  std::stable_sort(by_load.begin(), by_load.end(), [&](auto a, auto b) { return load_[a] < load_[b]; });
  std::size_t own = 0;
  for (std::size_t i = 0; i < batches.size(); ++i) {
    load_[by_load[i]] += positions[by_size[i]];
    if (by_load[i] == options_.rank) own = by_size[i];
  }
  return own;
}

// Takes one batch per rank from the sequence and keeps this rank's; a last round with fewer has none for anybody. One
// thread at a time; planning an epoch may take seconds, so not under the mutex.
BatchLoader::Round BatchLoader::plan_round() {
  Round round;
  try {
    std::vector<PlannedBatch> batches;
    while (batches.size() < options_.ranks) {
      std::optional<PlannedBatch> planned = sequence_->next();
      if (!planned) {
        round.end = round.last = true;
        return round;
      }
      round.after = planned->after;
      batches.push_back(std::move(*planned));
    }
    round.epoch = batches.back().epoch;
    round.place = options_.ranks == 1 ? 0 : own_place(batches);
    round.own = std::move(batches[round.place]);
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
      if (auto why = dataset_.load_or_skip(sample, round.batch)) round.skipped.emplace_back(sample, std::move(*why));
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
  return LoadedBatch{std::move(round.batch), round.epoch, round.place, round.after};
}

}  // namespace train_gpt_v2
