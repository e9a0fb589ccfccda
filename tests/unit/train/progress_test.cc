#include "train_gpt_v2/train/progress.h"

#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdlib>

#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/logging.h"

namespace train_gpt_v2 {
namespace {

StepReport figures() {
  return {1234, 3, 3.4121, 2.1044, 3.7390, 2e-5, 0.812, 12345};
}

TEST(Progress, CountsTakeThreeDigits) {
  EXPECT_EQ(short_count(0), "0");
  EXPECT_EQ(short_count(987), "987");
  EXPECT_EQ(short_count(999.6), "1.00k");
  EXPECT_EQ(short_count(12345), "12.3k");
  EXPECT_EQ(short_count(999600), "1.00M");
  EXPECT_EQ(short_count(1.25e6), "1.25M");
  EXPECT_EQ(short_count(NAN), "?");
  EXPECT_EQ(short_count(-1), "?");
}

TEST(Progress, TheLineSaysEverything) {
  EXPECT_EQ(format_line(figures(), 100000, 0.5, 7380),
            "step 1,234/100,000 1.2%  epoch 3  loss 3.412 (text 2.104, mel 3.739)  lr 2.0e-05  grad 0.81  12.3k tok/s"
            "  0.500 s/step  ETA 2h03m");
  StepReport nothing{7, 0, NAN, NAN, NAN, NAN, NAN, 0};
  EXPECT_EQ(format_line(nothing, 0, -1, -1), "step 7  epoch 0");
}

TEST(Progress, AHundredPercentMeansTheLastStepIsDone) {
  StepReport report = figures();
  report.step = 99999;
  EXPECT_NE(format_line(report, 100000, 1, 1).find(" 99.9%"), std::string::npos);
  report.step = 100000;
  EXPECT_NE(format_line(report, 100000, 1, 0).find(" 100.0%"), std::string::npos);
  report.step = 150000;  // the goal was lowered
  EXPECT_NE(format_line(report, 100000, 1, 0).find(" 100.0%"), std::string::npos);
}

std::size_t width(const std::string& text) {
  std::size_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

TEST(Progress, TheBarGivesWayToWhatMatters) {
  const std::string wide = format_bar(figures(), 100000, 7380, "saving 3s", 200);
  EXPECT_EQ(
      wide,
      "train 1,234/100,000 1.2%  ╌╌╌╌╌╌╌╌╌╌╌╌  epoch 3  loss 3.412 (text 2.104, mel 3.739)  lr 2.0e-05  12.3k tok/s"
      "  ETA 2h03m  [saving 3s]");
  for (std::size_t columns = 24; columns < 200; ++columns) {
    EXPECT_LE(width(format_bar(figures(), 100000, 7380, "saving 3s", columns)), columns);
  }
  EXPECT_EQ(format_bar(figures(), 100000, 7380, "saving 3s", 60),
            "train 1,234/100,000 1.2%  loss 3.412  ETA 2h03m  [saving 3s]");
  EXPECT_EQ(format_bar(figures(), 100000, 7380, "saving 3s", 10), "train 1,234/100,000 1.2%");
  StepReport half = figures();
  half.step = 50000;
  EXPECT_NE(format_bar(half, 100000, 1, "", 200).find("━━━━━━╌╌╌╌╌╌"), std::string::npos);
  EXPECT_EQ(format_bar(half, 0, -1, "", 200).find("━"), std::string::npos);
}

TEST(Progress, TheFirstStepIsNoMeasure) {
  StepClock clock;
  EXPECT_EQ(clock.mean(), -1);
  clock.add(30);
  EXPECT_EQ(clock.mean(), 30);
  clock.add(1);
  clock.add(2);
  EXPECT_DOUBLE_EQ(clock.mean(), 1.5);
  for (int i = 0; i < 5000; ++i) clock.add(4);
  EXPECT_NEAR(clock.mean(), 4, 1e-3);  // an older pace is forgotten
}

TEST(Progress, ModesHaveTheirNames) {
  EXPECT_EQ(progress_mode("auto"), ProgressMode::kAuto);
  EXPECT_EQ(progress_mode("bar"), ProgressMode::kBar);
  EXPECT_EQ(progress_mode("lines"), ProgressMode::kLines);
  EXPECT_EQ(progress_mode("off"), ProgressMode::kOff);
  EXPECT_THROW(progress_mode("loud"), Error);
}

TEST(Progress, TimeLeftLeavesPhasesOut) {
  double now = 100;
  Progress progress({ProgressMode::kOff, 1000, 0, 60, [&now] { return now; }});
  EXPECT_EQ(progress.eta_seconds(), -1);
  for (int step = 1; step <= 100; ++step) {
    now += 2;
    if (step % 10 == 0) {
      Progress::Phase validation(progress, "validating");
      now += 300;
      {
        Progress::Phase save(progress, "saving");
        now += 50;
      }
    }
    progress.step_done(step, 0);
  }
  EXPECT_DOUBLE_EQ(progress.step_seconds(), 2);
  EXPECT_DOUBLE_EQ(progress.eta_seconds(), 900 * 2);
  progress.step_done(1000, 0);
  EXPECT_EQ(progress.eta_seconds(), 0);
}

TEST(Progress, PlainLinesHoldNoControlBytesAndAHeartBeatComes) {
  double now = 0;
  ::testing::internal::CaptureStderr();
  {
    Progress progress({ProgressMode::kLines, 100, 40, 60, [&now] { return now; }});
    now = 59;
    progress.tick();
    now = 61;
    progress.tick();
    progress.tick();  // once per minute, not at every look
    progress.step_done(41, 1);
    progress.report({41, 1, 3, 2, 3.5, 1e-5, 1, 100});
    Progress::Phase validation(progress, "validating");
    validation.advance(12, 40);
    EXPECT_NE(progress.status().find("[validating 12/40]"), std::string::npos) << progress.status();
    now = 200;
    progress.tick();
  }
  const std::string printed = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(printed.find("still at work after step 40: 1m01s in this step"), std::string::npos) << printed;
  EXPECT_NE(printed.find("step 41/100 41.0%  epoch 1  loss 3.000"), std::string::npos) << printed;
  EXPECT_NE(printed.find("still at work after step 41: validating 12/40 2m19s"), std::string::npos) << printed;
  EXPECT_EQ(std::count(printed.begin(), printed.end(), '\n'), 3);
  for (const char c : printed) EXPECT_TRUE(c == '\n' || static_cast<unsigned char>(c) >= 0x20);
}

TEST(Progress, OffPrintsNothing) {
  double now = 0;
  ::testing::internal::CaptureStderr();
  Progress progress({ProgressMode::kOff, 100, 0, 60, [&now] { return now; }});
  progress.step_done(1, 0);
  progress.report(figures());
  now = 1000;
  progress.tick();
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

// What the test below runs as a new process on a pseudo terminal: whether stderr is a terminal is decided once.
TEST(Progress, DISABLED_ChildOnATerminal) {
  Progress progress({ProgressMode::kAuto, 100, 0, 60, {}});
  for (int step = 1; step <= 20; ++step) {
    ::usleep(10000);
    progress.step_done(step, 0);
    if (step % 10 == 0) progress.report({step, 0, 3, 2, 3.5, 1e-5, 1, 100});
  }
  log_info("data", "a message above the bar");
  Progress::Phase save(progress, "saving");
  ::usleep(1700000);  // long enough for a redraw by the clock alone
}

TEST(Progress, TheBarLivesOnOneLineOfATerminal) {
  winsize size{24, 70, 0, 0};
  int terminal = -1;
  const pid_t child = ::forkpty(&terminal, nullptr, nullptr, &size);
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::setenv("TERM", "xterm", 1);
    ::execl("/proc/self/exe", "test", "--gtest_filter=Progress.DISABLED_ChildOnATerminal",
            "--gtest_also_run_disabled_tests", static_cast<char*>(nullptr));
    ::_exit(127);
  }
  std::string seen;
  char chunk[4096];
  for (ssize_t got; (got = ::read(terminal, chunk, sizeof chunk)) > 0;)
    seen.append(chunk, static_cast<std::size_t>(got));
  ::close(terminal);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << seen;

  EXPECT_NE(seen.find("\r\x1b[2Ktrain 20/100 20.0%"), std::string::npos) << seen;
  EXPECT_NE(seen.find("[saving]"), std::string::npos) << seen;
  EXPECT_NE(seen.find("[saving 1s]"), std::string::npos) << seen;
  EXPECT_NE(seen.find("a message above the bar"), std::string::npos) << seen;
  EXPECT_EQ(seen.find("[train] step"), std::string::npos) << "the plain line belongs to the log file: " << seen;
  // No drawn line is wider than the terminal, and the last drawing removes the line.
  std::size_t drawings = 0;
  for (std::size_t at = 0; (at = seen.find("\x1b[2K", at)) != std::string::npos; ++drawings) {
    at += 4;
    EXPECT_LE(width(seen.substr(at, seen.find_first_of("\r\n", at) - at)), 70u);
  }
  EXPECT_GE(drawings, 4u);
  const auto last = seen.rfind("\x1b[2K");
  EXPECT_EQ(seen.find("train ", last), std::string::npos) << "the live line must be gone at the end";
}

}  // namespace
}  // namespace train_gpt_v2
