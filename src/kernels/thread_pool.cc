#include "thread_pool.h"

#include <stdexcept>

namespace train_gpt_v2 {
namespace {

constexpr int kSpins = 4000;  // about 50 us with a pause in each: longer than the gaps between the kernels of one step
constexpr std::uint32_t kInside = (1u << 11) - 1, kOpen = 1u << 11, kGeneration = 1u << 12;

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Waits until `value` differs from `old`; spins first, then sleeps.
std::uint32_t wait_for_change(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    const std::uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    pause_briefly();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads < 1 || threads > static_cast<int>(kInside)) throw std::invalid_argument("ThreadPool: 1 to 2047 threads");
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  state_.fetch_add(kGeneration, std::memory_order_release);
  state_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::take_tasks(int worker) {
  for (;;) {
    const std::int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= count_) return;
    call_(context_, task, worker);
  }
}

void ThreadPool::run_shared(std::int64_t count, Call call, const void* context) {
  call_ = call;
  context_ = context;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  state_.fetch_add(kGeneration + kOpen, std::memory_order_release);
  state_.notify_all();
  take_tasks(0);
  // All tasks are handed out: let nobody in any more, and wait for those inside.
  std::uint32_t state = state_.fetch_sub(kOpen, std::memory_order_acq_rel) - kOpen;
  while (state & kInside) state = wait_for_change(state_, state);
}

void ThreadPool::work(int worker) {
  std::uint32_t done = 0;  // the generation that this worker has been in, or has missed
  std::uint32_t state = state_.load(std::memory_order_acquire);
  while (!stop_) {
    const std::uint32_t generation = state / kGeneration;
    if (generation == done || !(state & kOpen)) {
      state = wait_for_change(state_, state);
      continue;
    }
    if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    done = generation;
    take_tasks(worker);
    state = state_.fetch_sub(1, std::memory_order_acq_rel) - 1;
    if (!(state & (kOpen | kInside))) state_.notify_all();
  }
}

}  // namespace train_gpt_v2
