#include "../../../src/kernels/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <set>
#include <stdexcept>

namespace train_gpt_v2 {
namespace {

TEST(ThreadPool, EveryTaskRunsOnceAndIsSeenByTheCaller) {
  for (const int threads : {1, 2, 3, 9}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    std::vector<std::int64_t> sums(300, 0);  // plain memory: the loop's end must publish it
    for (int round = 1; round <= 2000; ++round) {
      const std::int64_t count = round % 300;
      pool.run(count, [&](std::int64_t task, int worker) {
        ASSERT_LT(worker, threads);
        sums[static_cast<std::size_t>(task)] += round;
      });
    }
    std::vector<std::int64_t> want(300, 0);
    for (int round = 1; round <= 2000; ++round) {
      for (int task = 0; task < round % 300; ++task) want[static_cast<std::size_t>(task)] += round;
    }
    EXPECT_EQ(sums, want);
  }
}

TEST(ThreadPool, WorkersComeBackAfterSleeping) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> others{0};
    // Tasks long enough that the sleepers must have joined.
    pool.run(30, [&](std::int64_t, int worker) {
      others += worker != 0;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    });
    EXPECT_GT(others.load(), 0);
  }
}

TEST(ThreadPool, RefusesImpossibleNumbers) {
  EXPECT_THROW(ThreadPool(0), std::invalid_argument);
  EXPECT_THROW(ThreadPool(5000), std::invalid_argument);
}

}  // namespace
}  // namespace train_gpt_v2
