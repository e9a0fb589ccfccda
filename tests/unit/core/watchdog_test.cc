#include "train_gpt_v2/core/watchdog.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>

namespace train_gpt_v2 {
namespace {

using namespace std::chrono_literals;

TEST(Watchdog, AHangEndsTheProcessWithStatus83) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        Watchdog watchdog(0.3);
        watchdog.alive("waiting for the data loader");
        watchdog.describe("samples: a__b");
        std::this_thread::sleep_for(20s);
      },
      ::testing::ExitedWithCode(83), "error.HNG001.*\n.*waiting for the data loader\n.*samples: a__b");
}

TEST(Watchdog, WhoeverMovesIsLeftAlone) {
  Watchdog watchdog(0.4);
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(50ms);
    watchdog.alive("training");
  }
  {
    const Watchdog::Pause waiting_for_others(watchdog);
    std::this_thread::sleep_for(800ms);
  }
  Watchdog off(0);
  std::this_thread::sleep_for(50ms);
}

TEST(Watchdog, AStoppedProcessIsNoHang) {  // SIGSTOP, or a machine that was suspended
  const pid_t child = ::fork();
  if (child == 0) {
    {
      Watchdog watchdog(1.0);
      for (int i = 0; i < 12; ++i) {
        watchdog.alive("training");
        std::this_thread::sleep_for(100ms);
      }
    }
    ::_exit(0);  // under ThreadSanitizer this takes a second, in which nobody would move
  }
  std::this_thread::sleep_for(300ms);
  ASSERT_EQ(::kill(child, SIGSTOP), 0);
  std::this_thread::sleep_for(2s);
  ASSERT_EQ(::kill(child, SIGCONT), 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

}  // namespace
}  // namespace train_gpt_v2
