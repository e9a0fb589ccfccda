// What a start finds: a named checkpoint, a mark that the run is done, an epoch that has just ended.
#include <gmock/gmock.h>

#include <algorithm>

#include "support/resume_run.h"
#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using ::testing::HasSubstr;
using testing::metrics_of;
using testing::small_run;
using testing::TemporaryFolder;
using testing::timeless;
using testing::train_here;

std::string log_of(const std::string& run) {
  return read_file(run + "/log.txt", 16 << 20);
}

std::int64_t newest_step(const std::string& run) {
  return read_tensor_file(run + "/latest.pt").root.at("step").as_int();
}

Options plain(std::vector<std::string> more = {}) {
  more.insert(more.begin(), {"validation.interval=0", "train.log_interval=1", "checkpoint.interval=2"});
  return small_run(more);
}

TEST(NamedCheckpoint, TheSameCommandAgainContinuesWhereTheRunIs) {
  const TemporaryFolder folder;
  const std::string base = folder.file("base"), run = folder.file("run"), from = base + "/model_step2.pth";
  ASSERT_EQ(train_here(plain(), base, "auto", 2), ExitStatus::kOk);
  ASSERT_EQ(train_here(plain(), run, from, 5), ExitStatus::kOk);
  ASSERT_EQ(train_here(plain(), run, from), ExitStatus::kOk);
  EXPECT_THAT(log_of(run), HasSubstr("has come to step 5"));
  EXPECT_EQ(metrics_of(run, "train").size(), 8u);  // steps 3 to 10, once each
  // And done is done.
  ASSERT_EQ(train_here(plain(), run, from), ExitStatus::kOk);
  EXPECT_THAT(log_of(run), HasSubstr("nothing to do"));
  ASSERT_EQ(train_here(plain(), base), ExitStatus::kOk);
  testing::expect_same_checkpoint(base + "/model_step10.pth", base + "/latest.pt");
}

TEST(NamedCheckpoint, GoingBackLeavesNoSecondBranch) {
  const TemporaryFolder folder;
  const std::string whole = folder.file("whole"), run = folder.file("run");
  const Options validated = plain({"validation.interval=2"});
  ASSERT_EQ(train_here(validated, whole), ExitStatus::kOk);
  ASSERT_EQ(train_here(validated, run), ExitStatus::kOk);
  ASSERT_TRUE(file_exists(run + "/DONE"));
  ASSERT_EQ(train_here(validated, run, run + "/model_step6.pth", 7), ExitStatus::kOk);
  EXPECT_FALSE(file_exists(run + "/DONE"));
  EXPECT_FALSE(file_exists(run + "/model_step8.pth"));
  EXPECT_EQ(newest_step(run), 7);
  const std::vector<std::string> aside = list_directory(run + "/set_aside");
  ASSERT_EQ(aside.size(), 1u);
  EXPECT_EQ(read_tensor_file(run + "/set_aside/" + aside[0] + "/model_step10.pth").root.at("step").as_int(), 10);
  ASSERT_EQ(train_here(validated, run), ExitStatus::kOk);
  EXPECT_EQ(timeless(run), timeless(whole));
  testing::expect_same_checkpoint(run + "/latest.pt", whole + "/latest.pt");
  testing::expect_same_best(run, whole);
}

TEST(NamedCheckpoint, TheNewestOfADoneRunIsDone) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  ASSERT_EQ(train_here(plain(), run, "auto", 4), ExitStatus::kOk);
  ASSERT_EQ(train_here(plain(), run, "latest.pt"), ExitStatus::kOk);
  ASSERT_EQ(train_here(plain(), run, "latest.pt"), ExitStatus::kOk);
  EXPECT_THAT(log_of(run), HasSubstr("nothing to do"));
  EXPECT_TRUE(file_exists(run + "/DONE"));
  EXPECT_EQ(metrics_of(run, "train").size(), 10u);
}

TEST(Done, ADryRunLeavesTheMark) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  ASSERT_EQ(train_here(plain({"train.max_steps=2"}), run), ExitStatus::kOk);
  reset_signal_flags();
  SessionRequest request;
  request.options = plain({"train.max_steps=4"});
  request.run_directory = run;
  request.allowed_changes = {"schedule"};
  request.dry_run = true;
  ASSERT_EQ(run_training(request), ExitStatus::kOk);
  EXPECT_TRUE(file_exists(run + "/DONE"));
  EXPECT_THAT(log_of(run), HasSubstr("so it goes on"));
}

TEST(Done, AnotherOrderFileIsNotDone) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run"), order = folder.file("order.jsonl");
  const auto micro_batches = testing::fixture_json("expected/trainer_run.json").at("micro_batches");
  const auto options = [&] {
    return plain({"train.max_steps=null", "optimizer.total_steps=9", "data.order_file=" + order});
  };
  const auto first = [&](std::size_t count) {
    std::string lines;
    for (std::size_t i = 0; i < count; ++i) lines += micro_batches[i].at("ids").dump() + "\n";
    folder.write("order.jsonl", lines);
  };
  first(4);
  ASSERT_EQ(train_here(options(), run), ExitStatus::kOk);
  ASSERT_EQ(newest_step(run), 2);
  ASSERT_EQ(train_here(options(), run), ExitStatus::kOk);
  EXPECT_THAT(log_of(run), HasSubstr("nothing to do"));
  first(6);  // begins at its first line: another file
  ASSERT_EQ(train_here(options(), run, "auto", std::nullopt, {"order", "data"}), ExitStatus::kOk);
  EXPECT_EQ(newest_step(run), 5);
}

TEST(Done, KilledBeforeTheMarkNothingIsValidatedTwice) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  const Options options =
      small_run({"validation.interval=4", "early_stopping.enabled=true", "early_stopping.min_improvement=9",
                 "early_stopping.patience=50", "optimizer.warmup_steps=0"});
  ASSERT_EQ(train_here(options, run), ExitStatus::kOk);
  const std::int64_t patience = read_tensor_file(run + "/latest.pt").root.at("patience_counter").as_int();
  remove_file(run + "/DONE");
  ASSERT_EQ(train_here(options, run), ExitStatus::kOk);
  EXPECT_TRUE(file_exists(run + "/DONE"));
  EXPECT_EQ(metrics_of(run, "validation").size(), 3u);  // at 4, 8 and 10
  EXPECT_EQ(read_tensor_file(run + "/latest.pt").root.at("patience_counter").as_int(), patience);
}

// The recorded trainer took 6 steps of its own; its file does not say how large its batches were, so they count as
// ours.
TEST(PythonRun, EpochsEndWhereTheyWouldHaveEnded) {
  const std::string python = data_path("fixtures/expected/trainer/model_step6.pth");
  const LoadedFile file = read_tensor_file(python);
  const std::int64_t epoch = file.root.at("epoch").as_int(), consumed = file.root.at("batch_idx").as_int();
  const TemporaryFolder folder;
  for (const std::int64_t batch : {2, 4, 12}) {
    const std::string size = std::to_string(batch), run = folder.file("run" + size);
    ASSERT_EQ(train_here(plain({"train.max_steps=null", "train.epochs=3", "train.grad_accumulation=1",
                                "optimizer.total_steps=100", "train.batch_size=" + size}),
                         run, python),
              ExitStatus::kOk);
    const std::int64_t length = 24 / batch;
    EXPECT_EQ(newest_step(run), 6 + (3 - epoch) * length - std::min(consumed, length)) << batch;
  }
}

TEST(AllowChange, OtherDataAtTheBorderOfAnEpochSkipNoEpoch) {
  const auto options = [](std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"train.max_steps=null", "train.epochs=2", "optimizer.total_steps=20",
                               "train.grad_accumulation=1", "train.batch_size=6"});
    return plain(more);
  };
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  ASSERT_EQ(train_here(options(), run, "auto", 4), ExitStatus::kOk);  // an epoch
  ASSERT_EQ(train_here(options({"data.on_overlong=trim"}), run, "auto", std::nullopt, {"data"}), ExitStatus::kOk);
  EXPECT_EQ(newest_step(run), 8);
  EXPECT_EQ(metrics_of(run, "train").back().at("epoch"), 1);
}

TEST(Logging, ALineWaitsForAStepOfThisProcess) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  const std::vector<std::string> groups = {
      "optimizer.groups=[{\"name\":\"heads\",\"match\":[\"mel_head\",\"text_head\"],\"lr_scale\":0.5}]",
      "logging.tensorboard=true", "validation.interval=0"};
  const auto options = [&groups](std::vector<std::string> more) {
    more.insert(more.begin(), groups.begin(), groups.end());
    return small_run(more);
  };
  ASSERT_EQ(train_here(options({"train.log_interval=7"}), run, "auto", 10), ExitStatus::kOk);
  remove_file(run + "/DONE");
  ASSERT_EQ(train_here(options({"train.log_interval=10"}), run), ExitStatus::kOk);
  EXPECT_EQ(metrics_of(run, "train").size(), 1u);
}

TEST(Banner, SaysWhatTheRunWillTake) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  ASSERT_EQ(train_here(plain(), run, "auto", 2), ExitStatus::kOk);
  EXPECT_THAT(log_of(run), HasSubstr("by a first pass"));
  ASSERT_EQ(train_here(plain(), run, "auto", 3), ExitStatus::kOk);
  EXPECT_THAT(log_of(run), HasSubstr("at the pace so far"));
}

}  // namespace
}  // namespace train_gpt_v2
