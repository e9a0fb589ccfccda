#include "train_gpt_v2/core/watchdog.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <utility>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {

Watchdog::Watchdog(double seconds) : seconds_(seconds) {
  if (seconds_ > 0) thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Watchdog::describe(std::string what) {
  const std::lock_guard lock(mutex_);
  what_ = std::move(what);
}

void Watchdog::watch() {
  using Clock = std::chrono::steady_clock;
  const std::chrono::duration<double> tick(std::min(1.0, seconds_ / 8));
  std::uint64_t seen = beats_.load(std::memory_order_acquire);
  double idle = 0;
  std::unique_lock lock(mutex_);
  while (!closing_) {
    const auto begin = Clock::now();
    changed_.wait_for(lock, tick);
    if (closing_) return;
    const std::uint64_t now = beats_.load(std::memory_order_acquire);
    // A tick that took much longer than asked for means that the whole process stood still.
    const double passed = std::chrono::duration<double>(Clock::now() - begin).count();
    idle = now == seen && pauses_ == 0 ? idle + std::min(passed, 2 * tick.count()) : 0;
    seen = now;
    if (idle >= seconds_) leave(idle);
  }
}

void Watchdog::leave(double idle) {
  Error error("HNG001", concat("nothing has moved for ", human_duration(idle)));
  std::move(error).at(doing_.load(std::memory_order_relaxed));
  if (!what_.empty()) std::move(error).detail(what_);
  std::move(error).fix(
      "run the same command again: it continues from the newest checkpoint; --hang-seconds N waits longer");
  // The thread that hangs may hold the log's lock (a log file on a dead network share): not waited for without end.
  std::atomic<bool> written{false};
  std::thread writer([&written, report = error.report()] {
    log_raw(report);
    written = true;
  });
  for (int i = 0; i < 200 && !written; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  std::_Exit(static_cast<int>(ExitStatus::kHang));
}

}  // namespace train_gpt_v2
