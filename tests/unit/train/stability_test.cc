#include "train_gpt_v2/train/stability.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "support/test_files.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/io/torch_file.h"
#include "train_gpt_v2/train/black_box.h"

namespace train_gpt_v2 {
namespace {

using ::testing::HasSubstr;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

StabilityOptions options_with(const std::string& action) {
  StabilityOptions options;
  options.action = action;
  options.window = 50;
  return options;
}

// Steps of a healthy run: the loss falls slowly under noise, norms are log-normal.
class HealthyRun {
 public:
  double loss() { return 2 + 3 * std::exp(-static_cast<double>(step_++) / 300) + 0.1 * normal(); }
  double norm() { return std::exp(0.3 * normal()); }

 private:
  double uniform() { return (static_cast<double>(random_.below(1'000'000)) + 0.5) / 1'000'000; }
  double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(2 * M_PI * uniform()); }
  RandomStream random_{7, 1};
  std::int64_t step_ = 0;
};

void train_healthily(StabilityGuard& guard, HealthyRun& run, int steps) {
  for (int i = 0; i < steps; ++i) {
    const double loss = run.loss(), norm = run.norm();
    EXPECT_EQ(guard.judge(loss, norm, true).action, StepAction::kTrain) << i << ": " << loss << " " << norm;
  }
}

TEST(SpikeDetector, ZScoresAreThoseOfTheWindow) {
  SpikeDetector detector(20, 0, true);
  for (int i = 1; i <= 25; ++i) detector.accept(i, 1000);
  // 6..25: mean 15.5, sample variance 35.
  EXPECT_NEAR(detector.z_score(30), (30 - 15.5) / std::sqrt(35.0), 1e-12);
  EXPECT_LT(detector.z_score(1), 0);
}

TEST(SpikeDetector, WaitsForHistory) {
  SpikeDetector detector(200, 0.01, false);
  for (std::size_t i = 0; i + 1 < SpikeDetector::kLeastHistory; ++i) detector.accept(1, 6);
  EXPECT_EQ(detector.z_score(1000), 0);
  detector.accept(1, 6);
  EXPECT_NEAR(detector.z_score(1000), 999 / 0.01, 1e-6);
}

TEST(StabilityGuard, AHealthyRunIsLeftAlone) {
  StabilityGuard guard(options_with("skip"), false);
  HealthyRun run;
  train_healthily(guard, run, 3000);
}

TEST(StabilityGuard, AFlatLossMakesNoRippleAnOutlier) {
  StabilityGuard guard(options_with("skip"), false);
  for (int i = 0; i < 100; ++i) guard.judge(2.0, 1.0, true);
  EXPECT_EQ(guard.judge(2.05, 1.2, true).action, StepAction::kTrain);
  EXPECT_EQ(guard.judge(2.20, 1.0, true).action, StepAction::kSkip);
}

TEST(StabilityGuard, NamesWhatStandsOut) {
  StabilityGuard guard(options_with("warn"), false);
  HealthyRun run;
  train_healthily(guard, run, 400);
  StepVerdict verdict = guard.judge(9, 1, true);
  EXPECT_EQ(verdict.action, StepAction::kWarn);
  EXPECT_THAT(verdict.reason, HasSubstr("loss 9.0000 stands out (z "));
  EXPECT_GT(verdict.loss_z, 6);
  EXPECT_LT(verdict.norm_z, 6);
  verdict = guard.judge(run.loss(), 40, true);
  EXPECT_THAT(verdict.reason, HasSubstr("gradient norm 40.0000 stands out"));
  EXPECT_EQ(guard.judge(0.5, 1e-9, true).action, StepAction::kTrain);  // downwards is no harm
}

TEST(StabilityGuard, WarningsEndWhenANewLevelHasComeToStay) {
  StabilityGuard guard(options_with("warn"), false);
  HealthyRun run;
  train_healthily(guard, run, 400);
  int warnings = 0, last = -1;
  for (int i = 0; i < 100; ++i) {
    if (guard.judge(run.loss() + 2, run.norm(), true).action != StepAction::kWarn) continue;
    ++warnings;
    last = i;
  }
  EXPECT_GT(warnings, 0);
  EXPECT_LT(last, 20);
}

TEST(StabilityGuard, SkippedStepsDoNotMoveTheWindow) {
  StabilityGuard guard(options_with("skip"), false);
  HealthyRun run;
  train_healthily(guard, run, 400);
  const auto before = guard.save_state().at("loss");
  EXPECT_EQ(guard.judge(9, 1, true).action, StepAction::kSkip);
  EXPECT_EQ(guard.save_state().at("loss"), before);
}

TEST(StabilityGuard, StopsAfterTooManyInARow) {
  StabilityGuard guard(options_with("skip"), false);
  HealthyRun run;
  train_healthily(guard, run, 400);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(guard.judge(9, 1, true).action, StepAction::kSkip);
  train_healthily(guard, run, 1);  // the count starts anew
  for (int i = 0; i < 4; ++i) EXPECT_EQ(guard.judge(9, 1, true).action, StepAction::kSkip);
  EXPECT_EQ(guard.judge(9, 1, true).action, StepAction::kStop);
}

TEST(StabilityGuard, WhatIsNotFiniteIsAlwaysSkipped) {
  for (const std::string action : {"off", "warn", "skip", "rollback"}) {
    StabilityGuard guard(options_with(action), false);
    for (int i = 0; i < 4; ++i) {
      const StepVerdict verdict = guard.judge(kNaN, 1, false);
      EXPECT_EQ(verdict.action, StepAction::kSkip) << action;
      EXPECT_THAT(verdict.reason, HasSubstr("is not finite"));
    }
    EXPECT_EQ(guard.judge(kNaN, 1, false).action, StepAction::kStop) << action;
  }
}

TEST(StabilityGuard, TheSearchForALossScaleEndsNothing) {
  StabilityGuard guard(options_with("warn"), /*scaled=*/true);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(guard.judge(1, kNaN, false).action, StepAction::kSkip);
}

TEST(StabilityGuard, OffJudgesNothingElse) {
  StabilityGuard guard(options_with("off"), false);
  for (int i = 0; i < 100; ++i) guard.judge(1, 1, true);
  EXPECT_EQ(guard.judge(1e9, 1e9, true).action, StepAction::kTrain);
}

TEST(StabilityGuard, RollbacksAreCounted) {
  StabilityOptions options = options_with("rollback");
  options.max_rollbacks = 2;
  StabilityGuard guard(options, false);
  HealthyRun run;
  train_healthily(guard, run, 400);
  const StabilityGuard at_checkpoint = guard;
  for (std::int64_t i = 1; i <= 2; ++i) {
    EXPECT_EQ(guard.judge(9, 1, true).action, StepAction::kRollback);
    const StabilityGuard before = guard;
    guard = at_checkpoint;
    guard.rolled_back(before);
    EXPECT_EQ(guard.rollbacks(), i);
    train_healthily(guard, run, 3);
  }
  EXPECT_EQ(guard.judge(9, 1, true).action, StepAction::kStop);
}

TEST(StabilityGuard, StateGoesOnWhereItWasSaved) {
  StabilityGuard guard(options_with("skip"), false), fresh(options_with("skip"), false);
  HealthyRun run;
  train_healthily(guard, run, 77);
  guard.judge(9, 1, true);
  const std::string state = guard.save_state().dump();
  fresh.load_state(nlohmann::json::parse(state));
  EXPECT_EQ(fresh.save_state().dump(), state);
  for (int i = 0; i < 20; ++i) {
    const double loss = 2 + 0.2 * i, norm = 1 + i;
    const StepVerdict one = guard.judge(loss, norm, true), two = fresh.judge(loss, norm, true);
    EXPECT_EQ(one.action, two.action);
    EXPECT_EQ(one.loss_z, two.loss_z);
  }
  EXPECT_EQ(fresh.save_state().dump(), guard.save_state().dump());
}

TEST(StabilityGuard, AStateOfALongerWindowOrNoneAtAllFits) {
  StabilityGuard guard(options_with("skip"), false);
  HealthyRun run;
  train_healthily(guard, run, 77);
  StabilityOptions shorter = options_with("skip");
  shorter.window = 10;
  StabilityGuard other(shorter, false);
  other.load_state(guard.save_state());
  EXPECT_EQ(other.save_state().at("loss").size(), 10U);
  EXPECT_EQ(other.save_state().at("loss").back(), guard.save_state().at("loss").back());
  other.load_state(nlohmann::json::object());  // a checkpoint from before the guard
  EXPECT_EQ(other.save_state().at("loss").size(), 0U);
}

TEST(BlackBox, HoldsTheBatchAndHasALimit) {
  const testing::TemporaryFolder folder;
  LoadedBatch micro;
  micro.batch.ids = {"a__b", "c__d"};
  micro.batch.text = {3, 4, 5};
  micro.batch.text_begin = {0, 1, 3};
  micro.batch.codes = {7, 8};
  micro.batch.code_begin = {0, 1, 2};
  micro.batch.condition = std::vector<float>(12, 0.5F);
  micro.batch.emo_vec = std::vector<float>(6, 0.25F);
  StepVerdict verdict;
  verdict.action = StepAction::kSkip;
  verdict.reason = "loss 9 stands out";
  const std::vector<LoadedBatch> batches{micro};
  for (std::int64_t window = 0; window < 30; ++window) {
    const std::string path = write_black_box(folder.file("run"), {12, window, 9, 1.5, verdict, batches});
    EXPECT_EQ(path.empty(), window >= static_cast<std::int64_t>(BlackBoxEntry::kMostFiles));
  }
  const LoadedFile file = read_tensor_file(folder.file("run/black_box/window_3.pth"));
  EXPECT_EQ(file.root.at("step").as_int(), 12);
  EXPECT_EQ(file.root.at("action").as_string(), "skip");
  EXPECT_EQ(file.root.at("loss").as_double(), 9);
  const Value& batch = file.root.at("micro_batches").items()[0];
  EXPECT_EQ(batch.at("ids").items()[1].as_string(), "c__d");
  EXPECT_EQ(to_int_vector(batch.at("text").as_tensor()), (std::vector<std::int64_t>{3, 4, 5}));
  EXPECT_EQ(batch.at("condition").as_tensor().shape, (std::vector<std::int64_t>{2, 6}));
  EXPECT_FALSE(batch.contains("features"));
}

TEST(BlackBox, AnUnwritableFolderStopsNothing) {
  const testing::TemporaryFolder folder;
  folder.write("run", "a file where the run directory should be");
  EXPECT_EQ(write_black_box(folder.file("run"), {1, 1, 1, 1, StepVerdict{}, {}}), "");
}

}  // namespace
}  // namespace train_gpt_v2
