#pragma once
// Work over a range on all cores: body(thread, begin, end) for consecutive ranges, thread 0 taking the first.
//
// At most eight threads, and no more than count / grain + 1. Of several exceptions the one of the lowest range is
// thrown, after all threads have ended. The body must not touch what another range writes.

#include <algorithm>
#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

namespace train_gpt_v2 {

inline std::size_t parallel_threads() {
  return std::clamp(std::thread::hardware_concurrency(), 1U, 8U);
}

template <typename Body>
void in_parallel(std::size_t count, std::size_t grain, const Body& body) {
  const std::size_t threads = std::min(parallel_threads(), count / grain + 1);
  std::vector<std::exception_ptr> failures(threads);
  const auto run = [&](std::size_t i) {
    try {
      body(i, count * i / threads, count * (i + 1) / threads);
    } catch (...) {
      failures[i] = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  for (std::size_t i = 1; i < threads; ++i) pool.emplace_back(run, i);
  run(0);
  for (std::thread& thread : pool) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace train_gpt_v2
