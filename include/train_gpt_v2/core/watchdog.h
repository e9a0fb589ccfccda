#pragma once
// Ends a process that has stopped moving: a loader or a file system that hangs would else hold a machine for days.
//
// Whoever works calls alive() now and then. When no call came for `seconds`, the watchdog prints error HNG001 with what
// was going on and leaves with status 83; nothing is saved, because the thread that hangs may hold the state. A rerun
// continues from the newest checkpoint. Time is counted in ticks of the watchdog's own thread, so that neither a
// stopped process (SIGSTOP, a suspended machine) nor a clock that is set looks like a hang. Threads: alive() and
// describe() may be called from any thread.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

namespace train_gpt_v2 {

class Watchdog {
 public:
  explicit Watchdog(double seconds);  // 0 = off
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // `doing` must live for ever (a literal): what comes next.
  void alive(const char* doing) {
    doing_.store(doing, std::memory_order_relaxed);
    beats_.fetch_add(1, std::memory_order_release);
  }
  // More for the message: the samples of the batch at hand.
  void describe(std::string what);

  // While it lives nothing counts as a hang: another process is waited for, which has a watchdog of its own.
  class Pause {
   public:
    explicit Pause(Watchdog& watchdog) : watchdog_(watchdog) { ++watchdog_.pauses_; }
    ~Pause() { --watchdog_.pauses_; }
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    Watchdog& watchdog_;
  };

 private:
  void watch();
  [[noreturn]] void leave(double idle);

  double seconds_;
  std::atomic<std::uint64_t> beats_{0};
  std::atomic<int> pauses_{0};
  std::atomic<const char*> doing_{"starting"};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closing_ = false;
  std::string what_;
  std::thread thread_;
};

}  // namespace train_gpt_v2
