#pragma once
// Persistent workers that take the tasks of one loop after another. Own pool rather than OpenMP: torch's OpenMP team
// stays asleep while the fused step runs; between two loops that follow each other closely the workers spin for some
// microseconds instead of going through the operating system; and a loop never waits for a worker that has not come,
// so a busy machine delays it by little more than the time it lacks.
//
// run(count, body) calls body(task, worker) for every task once, handed out in increasing order, and returns when all
// are done. Which worker gets which task is not fixed, so a body must not let results depend on `worker` (scratch
// only). Bodies must not throw. One caller at a time.

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace train_gpt_v2 {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  template <typename Body>
  void run(std::int64_t count, const Body& body) {
    if (workers_.empty() || count <= 1) {
      for (std::int64_t i = 0; i < count; ++i) body(i, 0);
      return;
    }
    run_shared(
        count,
        [](const void* context, std::int64_t task, int worker) { (*static_cast<const Body*>(context))(task, worker); },
        &body);
  }

 private:
  using Call = void (*)(const void* context, std::int64_t task, int worker);
  void run_shared(std::int64_t count, Call call, const void* context);
  void work(int worker);
  void take_tasks(int worker);

  // The loop at work; written only while it is closed and nobody is in it.
  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::int64_t count_ = 0;
  alignas(64) std::atomic<std::int64_t> next_{0};
  // generation << 12 | open << 11 | workers inside. Workers enter an open loop once, by adding one.
  alignas(64) std::atomic<std::uint32_t> state_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace train_gpt_v2
