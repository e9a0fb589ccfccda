// A save that fails, is killed or loses power at any of its file operations leaves the old checkpoint or the new one.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "store_test_support.h"
#include "support/fault_ops.h"
#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

using testing::cases;
using testing::checkpoint_of;
using testing::FaultyOps;
using testing::figure;
using testing::job_of;
using testing::leftovers;
using testing::newest_sound_step;
using testing::PowerLossOps;
using testing::TemporaryFolder;
using Fault = FaultyOps::Fault;

class CheckpointFaults : public ::testing::Test {
 protected:
  void SetUp() override {
    configure_logging({LogLevel::kError, false});
    if (directory_exists("/dev/shm")) ::setenv("TMPDIR", "/dev/shm", 1);  // thousands of fsyncs are nothing there
  }
  void TearDown() override {
    configure_logging({LogLevel::kInfo, false});
    ::unsetenv("TMPDIR");
  }
};

// Steps 1 .. count, one after the other; false when one of them was reported as failed.
bool save(const std::string& folder, std::int64_t first, std::int64_t last) {
  CheckpointStore store(folder, CheckpointOptions{});
  for (std::int64_t step = first; step <= last; ++step) {
    store.submit(job_of(step), false);
    store.wait();
  }
  bool well = true;
  for (const SaveResult& result : store.take_results()) well = well && result.error.empty();
  return well;
}

TEST_F(CheckpointFaults, EveryKthOperationFails) {
  struct Case {
    const char* name;
    Fault fault;
    int error;
    bool stays;
  };
  // A full or read-only disk stays so; the others strike once.
  const Case kinds[] = {{"EIO", Fault::kError, EIO, false},       {"ENOSPC", Fault::kError, ENOSPC, true},
                        {"EDQUOT", Fault::kError, EDQUOT, false}, {"EMFILE", Fault::kError, EMFILE, false},
                        {"EROFS", Fault::kError, EROFS, true},    {"EINTR", Fault::kError, EINTR, false},
                        {"short", Fault::kShortWrite, 0, false}};
  std::int64_t tried = 0, lost = 0, undetected = 0;
  for (const Case& kind : kinds) {
    bool struck = true;
    for (std::int64_t k = 0; struck; ++k) {
      SCOPED_TRACE(concat(kind.name, " at operation ", k));
      const TemporaryFolder folder;
      ASSERT_TRUE(save(folder.path(), 1, 3));  // the fourth save rotates the first away
      FaultyOps ops(kind.fault, k, kind.error, kind.stays);
      bool well = false;
      {
        const ScopedFileOps scope(ops);
        well = save(folder.path(), 4, 4);
      }
      struck = ops.struck();
      tried += struck;
      const std::int64_t newest = newest_sound_step(folder.path());
      lost += newest < 3;
      undetected += well && newest != 4;
      EXPECT_GE(newest, 3);
      if (well) {
        EXPECT_EQ(newest, 4);
        EXPECT_TRUE(identical(read_tensor_file(folder.file("latest.pt")).root, checkpoint_of(4)));
      }
      // The fault gone, everything is as it should be.
      EXPECT_TRUE(save(folder.path(), 5, 5));
      EXPECT_EQ(newest_sound_step(folder.path()), 5);
      EXPECT_EQ(leftovers(folder.path()), 0);
      ASSERT_LT(k, 500);
    }
  }
  EXPECT_GT(tried, 60);
  figure("save: k-th file operation fails", tried, lost, undetected);
}

// Runs `work` in a child process; its status as waitpid gives it.
template <typename Work>
int in_child(const Work& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    work();
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST_F(CheckpointFaults, KilledAtEveryOperation) {
  std::int64_t tried = 0, lost = 0;
  for (std::int64_t k = 0;; ++k) {
    SCOPED_TRACE(concat("killed at operation ", k));
    const TemporaryFolder folder;
    ASSERT_TRUE(save(folder.path(), 1, 3));
    const int status = in_child([&] {
      FaultyOps ops(Fault::kKill, k);
      const ScopedFileOps scope(ops);
      save(folder.path(), 4, 4);
    });
    if (!WIFSIGNALED(status)) break;
    ++tried;
    const std::int64_t newest = newest_sound_step(folder.path());
    lost += newest < 3;
    EXPECT_GE(newest, 3);
    EXPECT_TRUE(save(folder.path(), 5, 5));
    EXPECT_EQ(newest_sound_step(folder.path()), 5);
    EXPECT_EQ(leftovers(folder.path()), 0);
    ASSERT_LT(k, 500);
  }
  EXPECT_GT(tried, 10);
  figure("save: killed at the k-th file operation", tried, lost, 0);
}

TEST_F(CheckpointFaults, PowerIsLostBehindEveryOperation) {
  const TemporaryFolder folder;
  PowerLossOps ops(folder.path());
  std::vector<std::size_t> acknowledged;  // [step - 1] = operations when its save was reported done
  {
    const ScopedFileOps scope(ops);
    CheckpointStore store(folder.path(), CheckpointOptions{});
    for (std::int64_t step = 1; step <= 5; ++step) {
      store.submit(job_of(step, 256), true);
      acknowledged.push_back(ops.operations());
    }
  }
  RandomStream random(20261, 1);
  const std::int64_t rounds = cases(12, 4);
  std::int64_t tried = 0, lost = 0;
  for (std::size_t prefix = 0; prefix <= ops.operations(); ++prefix) {
    std::int64_t promised = -1;
    for (std::size_t i = 0; i < acknowledged.size(); ++i) {
      if (acknowledged[i] <= prefix) promised = static_cast<std::int64_t>(i) + 1;
    }
    for (std::int64_t round = 0; round < rounds; ++round) {
      const TemporaryFolder after;
      ops.crash(prefix, random, after.path());
      const std::int64_t newest = newest_sound_step(after.path(), 256);
      ++tried;
      lost += newest < promised;
      ASSERT_GE(newest, promised) << "operation " << prefix << " of " << ops.operations();
    }
  }
  EXPECT_GT(tried, 100);
  figure("save: power lost behind every operation", tried, lost, 0);
}

TEST_F(CheckpointFaults, ThePowerLossModelLosesWhatWasNotSynced) {  // the test above can fail
  const TemporaryFolder folder;
  PowerLossOps ops(folder.path());
  {
    const ScopedFileOps scope(ops);
    const int fd = file_ops().open(folder.file("model_step1.pth"), O_WRONLY | O_CREAT, 0644);
    const std::string bytes = "never synced";
    file_ops().write(fd, bytes.data(), bytes.size());
    file_ops().close(fd);
  }
  RandomStream random(1, 1);
  std::int64_t lost = 0;
  for (int round = 0; round < 50; ++round) {
    const TemporaryFolder after;
    ops.crash(ops.operations(), random, after.path());
    lost += !file_exists(after.file("model_step1.pth")) || file_size(after.file("model_step1.pth")) == 0;
  }
  EXPECT_GT(lost, 5);
  EXPECT_LT(lost, 50);
}

TEST_F(CheckpointFaults, KilledAtRandomMoments) {
  ::unsetenv("TMPDIR");  // a real disk, with its real times
  const TemporaryFolder folder;
  const std::int64_t kills = cases(1000, 60);
  RandomStream random(7, 7);
  std::int64_t lost = 0, older = 0, acknowledged = 0;
  for (std::int64_t i = 0; i < kills; ++i) {
    int channel[2];
    ASSERT_EQ(::pipe(channel), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      ::close(channel[0]);
      CheckpointStore store(folder.path(), CheckpointOptions{});
      for (std::int64_t step = acknowledged + 1;; ++step) {
        store.submit(job_of(step, 16384), true);
        if (::write(channel[1], &step, sizeof step) != sizeof step) ::_exit(1);
      }
    }
    ::close(channel[1]);
    std::this_thread::sleep_for(std::chrono::microseconds(2000 + random.below(25'000)));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the writer ended by itself";
    for (std::int64_t step = 0; ::read(channel[0], &step, sizeof step) == sizeof step;) acknowledged = step;
    ::close(channel[0]);
    const std::int64_t newest = newest_sound_step(folder.path(), 16384);
    lost += newest < 0 && acknowledged > 0;
    older += newest < acknowledged && acknowledged > 0;
    ASSERT_GE(newest, acknowledged > 0 ? acknowledged : -1);
    acknowledged = std::max(acknowledged, newest);
  }
  { const CheckpointStore store(folder.path(), CheckpointOptions{}); }  // the next start
  EXPECT_EQ(leftovers(folder.path()), 0);
  EXPECT_GT(acknowledged, 5) << "hardly anything was ever saved";
  figure("writer: kill -9 at random moments", kills, lost + older, 0);
}

TEST_F(CheckpointFaults, LeftoversOfOthersStay) {
  const TemporaryFolder folder;
  folder.write("model_step3.pth.tmp.12.0", "ours");
  folder.write("latest.pt.tmp.12", "ours");
  folder.write("notes.tmp.12", "not ours");
  folder.write("model_step3.pth.tmp.copy", "not ours");
  { const CheckpointStore store(folder.path(), CheckpointOptions{}); }
  EXPECT_EQ(list_directory(folder.path()), (std::vector<std::string>{"model_step3.pth.tmp.copy", "notes.tmp.12"}));
}

}  // namespace
}  // namespace train_gpt_v2
