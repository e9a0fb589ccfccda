// A wall clock that jumps while training (a time server, a suspended machine): limits, durations and waits stay right.
// This program answers clock_gettime for all the libraries it uses, with a clock that can be set.
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <ctime>

#include "support/fixture_run.h"

namespace {
std::atomic<long> wall_clock_ahead{0};  // seconds
}

extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  const long result = ::syscall(SYS_clock_gettime, clock, time);
  if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec += wall_clock_ahead.load();
  return static_cast<int>(result);
}

namespace train_gpt_v2 {
namespace {

using testing::fixture_options;
using testing::metrics_of;
using testing::TemporaryFolder;

// Sets the clock when the checkpoint of step 2 is opened.
class ClockSetter : public FileOps {
 public:
  explicit ClockSetter(long seconds) : seconds_(seconds) {}
  int open(const std::string& path, int flags, mode_t mode) override {
    if (path.find("model_step2.pth.tmp") != std::string::npos) wall_clock_ahead = seconds_;
    return FileOps::open(path, flags, mode);
  }

 private:
  long seconds_;
};

class WallClock : public ::testing::TestWithParam<long> {
 protected:
  ~WallClock() override { wall_clock_ahead = 0; }
};

TEST_P(WallClock, JumpsChangeNeitherLimitsNorDurations) {
  const TemporaryFolder folder;
  const Options options =
      fixture_options({"train.layout=packed", "train.max_steps=6", "optimizer.total_steps=6",
                       "optimizer.schedule=constant", "train.max_hours=1", "checkpoint.interval=2",
                       "validation.interval=0", "checkpoint.interval_minutes=30", "checkpoint.background=false"});
  ClockSetter setter(GetParam());
  const ScopedFileOps scope(setter);
  const auto before = std::chrono::system_clock::now();
  EXPECT_EQ(testing::train_here(options, folder.path()), ExitStatus::kOk);  // kTemporary: max_hours
  const auto passed = std::chrono::system_clock::now() - before;
  ASSERT_GT(std::chrono::abs(passed), std::chrono::hours(40)) << "the clock was not set";

  const auto lines = metrics_of(folder.path(), "train");
  ASSERT_EQ(lines.size(), 6u);
  for (const auto& line : lines) {
    for (const auto& [key, value] : line.items()) {
      if (key == "time" || !value.is_number() || key.find("second") == std::string::npos) continue;
      if (key.find("per_second") != std::string::npos) {
        EXPECT_GT(value.get<double>(), 1) << key;
      } else {
        EXPECT_GE(value.get<double>(), 0) << key;
        EXPECT_LT(value.get<double>(), 3600) << key;
      }
    }
  }
  std::size_t saves = 0;
  for (const auto& line : metrics_of(folder.path(), "event")) saves += line.at("event") == "save";
  EXPECT_EQ(saves, 3u);  // those of checkpoint.interval; thirty minutes did not pass
}

INSTANTIATE_TEST_SUITE_P(TwoDays, WallClock, ::testing::Values(2 * 86'400L, -2 * 86'400L));

}  // namespace
}  // namespace train_gpt_v2
