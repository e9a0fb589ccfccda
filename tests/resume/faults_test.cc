// Faults in the middle of training: full disks, bad and vanishing data, signals that meet them. Nothing that was
// trained is lost, and nothing is called done that is not on disk.
#include <gmock/gmock.h>
#include <unistd.h>

#include <cerrno>
#include <functional>

#include "support/fixture_run.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using testing::fixture_options;
using testing::metrics_of;
using testing::TemporaryFolder;
using testing::train_here;

// Refuses to create files whose path holds `needle`, `times` times; `first` runs before the first refusal.
class FullDisk : public FileOps {
 public:
  FullDisk(std::string needle, int times, std::function<void()> first = {})
      : needle_(std::move(needle)), times_(times), first_(std::move(first)) {}
  int open(const std::string& path, int flags, mode_t mode) override {
    if (path.find(needle_) == std::string::npos) return FileOps::open(path, flags, mode);
    if (first_) std::exchange(first_, {})();
    if (times_ == 0) return FileOps::open(path, flags, mode);
    --times_;
    errno = ENOSPC;
    return -1;
  }

 private:
  std::string needle_;
  int times_;
  std::function<void()> first_;
};

Options short_run(const std::vector<std::string>& sets = {}) {
  std::vector<std::string> all = {"train.layout=packed",         "train.max_steps=6",      "optimizer.total_steps=6",
                                  "optimizer.schedule=constant", "validation.interval=0",  "checkpoint.interval=2",
                                  "train.grad_accumulation=1",   "data.prefetch_batches=1"};
  all.insert(all.end(), sets.begin(), sets.end());
  return fixture_options(all);
}

std::int64_t step_in(const std::string& path) {
  return read_tensor_file(path).root.at("step").as_int();
}

std::size_t events(const std::string& directory, const std::string& name) {
  std::size_t count = 0;
  for (const auto& line : metrics_of(directory, "event")) count += line.at("event") == name;
  return count;
}

// The code of the Error that training ends with.
std::string error_of(const Options& options, const std::string& directory) {
  try {
    train_here(options, directory);
  } catch (const Error& error) {
    return error.code();
  }
  return "none";
}

constexpr int kAlways = 1 << 20;

TEST(Faults, AFullDiskInTheMiddleIsSaidAndTrainingGoesOn) {
  const TemporaryFolder folder;
  FullDisk disk("model_step2.pth.tmp", 1);
  const ScopedFileOps scope(disk);
  EXPECT_EQ(train_here(short_run(), folder.path()), ExitStatus::kOk);
  EXPECT_EQ(events(folder.path(), "save_failed"), 1u);
  EXPECT_FALSE(file_exists(folder.file("model_step2.pth")));
  EXPECT_EQ(step_in(folder.file("latest.pt")), 6);
}

TEST(Faults, DoneWasWrittenThoughTheLastSaveHadFailed) {
  const TemporaryFolder folder;
  FullDisk disk("model_step6.pth.tmp", 1);
  const ScopedFileOps scope(disk);
  EXPECT_EQ(train_here(short_run(), folder.path()), ExitStatus::kOk);
  EXPECT_EQ(step_in(folder.file("latest.pt")), 6);  // saved again before DONE
  EXPECT_TRUE(file_exists(folder.file("DONE")));
}

TEST(Faults, NoDoneWithoutTheLastCheckpoint) {
  const TemporaryFolder folder;
  FullDisk disk("model_step6.pth.tmp", kAlways);
  {
    const ScopedFileOps scope(disk);
    EXPECT_EQ(error_of(short_run(), folder.path()), "IO002");
  }
  EXPECT_FALSE(file_exists(folder.file("DONE")));
  EXPECT_EQ(step_in(folder.file("latest.pt")), 4);
  EXPECT_EQ(train_here(short_run(), folder.path()), ExitStatus::kOk);  // space again: the same command
  EXPECT_EQ(step_in(folder.file("latest.pt")), 6);
}

TEST(Faults, ABestModelThatCouldNotBeWrittenStillCountedAsBest) {
  const TemporaryFolder folder;
  FullDisk disk("best_model.pth.tmp", 1);
  const ScopedFileOps scope(disk);
  // Rates so small that all validations are equal: only the failure can be why the second one is written.
  EXPECT_EQ(
      train_here(short_run({"validation.interval=1", "optimizer.learning_rate=1e-30", "checkpoint.background=false"}),
                 folder.path()),
      ExitStatus::kOk);
  EXPECT_EQ(events(folder.path(), "save_failed"), 1u);
  EXPECT_EQ(step_in(folder.file("best_model.pth")), 2);
}

TEST(Faults, ThreeFailedSavesInARowEndTheRun) {
  const TemporaryFolder folder;
  FullDisk disk("model_step", kAlways);
  const ScopedFileOps scope(disk);
  EXPECT_EQ(error_of(short_run({"checkpoint.interval=1", "train.max_steps=50"}), folder.path()), "IO002");
  EXPECT_LE(metrics_of(folder.path(), "train").size(), 6u);
}

TEST(Faults, StoppedBySignalAndNotSavedIsNot143) {
  const TemporaryFolder folder;
  FullDisk disk("model_step4.pth.tmp", kAlways, [] { request_stop(ExitStatus::kSigterm); });
  {
    const ScopedFileOps scope(disk);
    EXPECT_NE(error_of(short_run({"checkpoint.interval=4", "checkpoint.background=false"}), folder.path()), "none");
  }
  reset_signal_flags();
  FullDisk later("model_step", kAlways, [] { request_stop(ExitStatus::kSigterm); });
  const ScopedFileOps scope(later);
  EXPECT_EQ(error_of(short_run({"checkpoint.interval=2"}), folder.file("other")), "IO002");
  reset_signal_flags();
}

// The fixtures' data in a folder of its own, to be spoilt.
std::string own_data(const TemporaryFolder& folder) {
  std::filesystem::copy(testing::data_path("fixtures/data"), folder.file("data"),
                        std::filesystem::copy_options::recursive);
  return R"(data.train_manifests=[")" + folder.file("data/train_pairs.jsonl") + R"("])";
}

TEST(Faults, ABadSampleLostTheStepsBeforeIt) {
  const TemporaryFolder folder;
  const std::vector<std::string> sets = {own_data(folder), "checkpoint.interval=100", "sampler.mode=sequential"};
  ASSERT_EQ(train_here(short_run(sets), folder.file("whole")), ExitStatus::kOk);

  // The last pair of the fourth batch of three loses its codes.
  std::ifstream lines(folder.file("data/train_pairs.jsonl"));
  std::string line;
  for (int i = 0; i < 12; ++i) std::getline(lines, line);
  const std::string codes =
      folder.file("data/") + nlohmann::json::parse(line).at("target_codes_path").get<std::string>();
  std::filesystem::rename(codes, codes + ".away");
  const std::string code = error_of(short_run(sets), folder.file("run"));
  EXPECT_THAT(code, ::testing::AnyOf("IO001", "DAT006"));
  const std::int64_t kept = step_in(folder.file("run/latest.pt"));
  EXPECT_GE(kept, 1);
  EXPECT_LT(kept, 6);

  std::filesystem::rename(codes + ".away", codes);
  ASSERT_EQ(train_here(short_run(sets), folder.file("run")), ExitStatus::kOk);
  const LoadedFile whole = read_tensor_file(folder.file("whole/latest.pt")),
                   run = read_tensor_file(folder.file("run/latest.pt"));
  EXPECT_TRUE(identical(whole.root.at("model"), run.root.at("model")));
  EXPECT_TRUE(identical(whole.root.at("optimizer"), run.root.at("optimizer")));
}

TEST(Faults, AManifestCutShortWasASigbus) {
  const TemporaryFolder folder;
  const std::string set = own_data(folder), manifest = folder.file("data/train_pairs.jsonl");
  const std::string content = read_file(manifest, 1 << 20);
  // Large enough for whole pages to vanish.
  std::string longer;
  for (int i = 0; i < 40; ++i) {
    std::istringstream in(content);
    for (std::string line; std::getline(in, line);) {
      auto record = nlohmann::json::parse(line);
      record["id"] = record["id"].get<std::string>() + "_" + std::to_string(i);
      longer += record.dump() + "\n";
    }
  }
  folder.write("data/train_pairs.jsonl", longer);
  FullDisk disk("model_step2.pth.tmp", 0, [&] { ASSERT_EQ(::truncate(manifest.c_str(), 4096), 0); });
  const ScopedFileOps scope(disk);
  const std::string code = error_of(short_run({set, "train.max_steps=200"}), folder.file("run"));
  EXPECT_THAT(code, ::testing::AnyOf("IO008", "DAT001"));
  EXPECT_GE(step_in(folder.file("run/latest.pt")), 2);
}

TEST(Faults, ARewrittenManifestIsNoticed) {
  const TemporaryFolder folder;
  const std::string set = own_data(folder), manifest = folder.file("data/train_pairs.jsonl");
  // In place and of the same size: the first character of every id becomes another.
  FullDisk disk("model_step2.pth.tmp", 0, [&] {
    std::string content = read_file(manifest, 1 << 20);
    for (std::size_t at = content.find("\"id\": \""); at != std::string::npos;
         at = content.find("\"id\": \"", at + 1)) {
      content[at + 7] = 'X';
    }
    std::fstream(manifest, std::ios::in | std::ios::out)
        .write(content.data(), static_cast<std::streamsize>(content.size()));
  });
  const ScopedFileOps scope(disk);
  EXPECT_EQ(error_of(short_run({set, "train.max_steps=200"}), folder.file("run")), "DAT001");
}

// Does not remove what `check` has written.
class CheckFileStays : public FileOps {
 public:
  int unlink(const std::string& path) override {
    if (path.find(".train_gpt_v2_check.") == std::string::npos) return FileOps::unlink(path);
    errno = EACCES;
    return -1;
  }
};

TEST(Faults, ACheckThatCannotRemoveItsFileWarns) {
  const TemporaryFolder folder;
  CheckFileStays ops;
  const ScopedFileOps scope(ops);
  reset_signal_flags();
  PreflightResult measured;
  SessionRequest request;
  request.options = short_run();
  request.run_directory = folder.path();
  request.stage = [](std::string_view) {};
  request.preflight = &measured;
  request.build = "test";
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(run_training(request), ExitStatus::kOk);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), ::testing::HasSubstr("cannot remove"));
  EXPECT_GT(measured.load_seconds, 0);
}

TEST(Faults, LogAndMetricsThatCannotBeWrittenStopNothing) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder.file("run/log.txt"));
  std::filesystem::create_directories(folder.file("run/metrics.jsonl"));
  EXPECT_EQ(train_here(short_run(), folder.file("run")), ExitStatus::kOk);
  EXPECT_EQ(step_in(folder.file("run/latest.pt")), 6);
}

}  // namespace
}  // namespace train_gpt_v2
