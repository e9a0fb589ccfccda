// Checkpoint files: one step at a time in the background, failures, rotation, and what is never overwritten unread.
#include "train_gpt_v2/train/checkpoint_store.h"

#include <gmock/gmock.h>

#include <cerrno>
#include <future>
#include <mutex>

#include "support/test_files.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"

namespace train_gpt_v2 {
namespace {

using ::testing::ElementsAre;
using testing::TemporaryFolder;

Value content(std::int64_t step) {
  const std::vector<float> numbers(5000, static_cast<float>(step));
  Value root = Value::dict();
  root.set("step", step);
  root.set("weights", Tensor::copy_of(DType::kFloat32, {5000}, std::as_bytes(std::span(numbers))));
  return root;
}

SaveJob job(std::int64_t step, const std::string& name = "") {
  SaveJob one;
  one.step = step;
  one.file_name = name.empty() ? CheckpointStore::step_file_name(step) : name;
  one.is_step_checkpoint = name.empty();
  one.content = content(step);
  one.stall_seconds = 0.25;
  return one;
}

std::int64_t step_in(const std::string& path) {
  return read_tensor_file(path, true).root.at("step").as_int();
}

TEST(CheckpointStore, AFailedSaveIsReportedAndTheThirdEndsTheRun) {
  const TemporaryFolder folder;
  CheckpointOptions options;
  CheckpointStore store(folder.file("not/there"), options);
  const auto job = [] {
    SaveJob one;
    one.step = 1;
    one.file_name = CheckpointStore::step_file_name(1);
    one.content = Value::dict();
    return one;
  };
  store.submit(job(), false);
  store.wait();
  const auto results = store.take_results();
  ASSERT_EQ(results.size(), 1u);
  EXPECT_FALSE(results[0].error.empty());
  store.submit(job(), false);
  store.wait();
  store.submit(job(), false);
  store.wait();
  EXPECT_THROW(store.submit(job(), false), Error);
}

// A file system whose writes wait until they are let through, or that has no room, or that damages what is written.
class Disk : public FileOps {
 public:
  void hold() { gate_.lock(); }
  void release() { gate_.unlock(); }
  bool full = false, damaging = false;

  int allocate(int fd, off_t size) override { return full ? ENOSPC : FileOps::allocate(fd, size); }
  ssize_t write(int fd, const void* data, std::size_t size) override {
    const std::lock_guard wait(gate_);
    ++writes;
    if (!damaging || size < 10'000) return FileOps::write(fd, data, size);
    std::string copy(static_cast<const char*>(data), size);
    copy[size / 2] = static_cast<char>(copy[size / 2] ^ 1);
    return FileOps::write(fd, copy.data(), size);
  }
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
    const std::lock_guard wait(gate_);
    ++writes;
    if (!damaging || size < 10'000) return FileOps::pwrite(fd, data, size, offset);
    std::string copy(static_cast<const char*>(data), size);
    copy[size / 2] = static_cast<char>(copy[size / 2] ^ 1);
    return FileOps::pwrite(fd, copy.data(), size, offset);
  }
  int writes = 0;

 private:
  std::mutex gate_;
};

TEST(CheckpointStore, FilesOfOneStepQueueTheNextStepWaitsAndNoneIsSkipped) {
  const TemporaryFolder folder;
  Disk disk;
  const ScopedFileOps use(disk);
  disk.hold();
  CheckpointStore store(folder.path(), {});
  store.submit(job(1, "best_model.pth"), false);  // returns although the disk stands still
  store.submit(job(1), false);
  auto next = std::async(std::launch::async, [&store] { store.submit(job(2), false); });
  EXPECT_EQ(next.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  EXPECT_FALSE(store.wait_for(0.01));
  disk.release();
  next.get();
  store.wait();
  EXPECT_EQ(step_in(folder.file("best_model.pth")), 1);
  EXPECT_THAT(store.steps_on_disk(), ElementsAre(1, 2));
  EXPECT_EQ(step_in(folder.file("latest.pt")), 2);
  const auto results = store.take_results();
  ASSERT_EQ(results.size(), 3u);
  for (const SaveResult& result : results) {
    EXPECT_EQ(result.error, "");
    EXPECT_EQ(result.stall_seconds, 0.25);
    EXPECT_EQ(result.bytes, file_size(result.path));
  }
}

TEST(CheckpointStore, WithoutRoomNothingIsWrittenAndTheOldOnesStay) {
  const TemporaryFolder folder;
  Disk disk;
  const ScopedFileOps use(disk);
  CheckpointStore store(folder.path(), {});
  store.submit(job(1), true);
  store.take_results();
  disk.full = true;
  disk.writes = 0;
  store.submit(job(2), false);
  store.wait();
  EXPECT_EQ(disk.writes, 0);
  EXPECT_THAT(store.take_results().at(0).error, ::testing::HasSubstr("IO002"));
  EXPECT_THAT(list_directory(folder.path()), ElementsAre("latest.pt", "latest.pth", "model_step1.pth"));
  EXPECT_EQ(step_in(folder.file("latest.pt")), 1);
  disk.full = false;
  store.submit(job(3), true);
  EXPECT_EQ(step_in(folder.file("latest.pth")), 3);
}

TEST(CheckpointStore, NothingOldIsDeletedUntilANewerOneVerifies) {
  const TemporaryFolder folder;
  Disk disk;
  const ScopedFileOps use(disk);
  CheckpointStore store(folder.path(), {});
  for (const std::int64_t step : {1, 2, 3}) store.submit(job(step), true);
  disk.damaging = true;
  store.submit(job(4), false);
  store.wait();
  EXPECT_NE(store.take_results().back().error, "");
  EXPECT_THAT(store.steps_on_disk(), ElementsAre(1, 2, 3, 4));
  disk.damaging = false;
  store.submit(job(5), true);
  EXPECT_THAT(store.steps_on_disk(), ElementsAre(3, 4, 5));
}

TEST(CheckpointStore, ALatestThatIsTheOnlyNameOfACheckpointIsReplacedByOneThatVerifies) {
  const TemporaryFolder folder;
  Disk disk;
  const ScopedFileOps use(disk);
  write_torch_file(folder.file("latest.pth"), content(70));  // copied here from elsewhere, and resumed from
  CheckpointStore store(folder.path(), {});
  disk.damaging = true;
  store.submit(job(71), false);
  store.wait();
  EXPECT_NE(store.take_results().back().error, "");
  EXPECT_EQ(step_in(folder.file("latest.pth")), 70);
  disk.damaging = false;
  store.submit(job(72), true);
  EXPECT_EQ(step_in(folder.file("latest.pth")), 72);
}

TEST(CheckpointStore, LaterStepsOfAnotherBranchAreLeftAlone) {
  const TemporaryFolder folder;
  CheckpointStore store(folder.path(), {});
  for (const std::int64_t step : {90, 91, 1, 2, 3, 4}) store.submit(job(step), true);
  EXPECT_THAT(store.steps_on_disk(), ElementsAre(2, 3, 4, 90, 91));
  EXPECT_EQ(step_in(folder.file("latest.pt")), 4);
}

}  // namespace
}  // namespace train_gpt_v2
