#include "train_gpt_v2/train/tensorboard.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cmath>
#include <filesystem>
#include <thread>
#include <vector>

#include "support/event_file.h"
#include "support/test_files.h"
#include "train_gpt_v2/core/filesystem.h"

namespace train_gpt_v2 {
namespace {

using testing::doubles;
using testing::field;
using testing::integer;
using testing::Message;
using testing::parse;
using testing::read_as;
using testing::real;
using testing::records;
using testing::value_of;

TEST(TensorBoard, ChecksumHasTheKnownAnswer) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);  // RFC 3720, B.4
}

TEST(TensorBoard, EveryKindOfSummaryReadsBack) {
  testing::TemporaryFolder folder;
  std::string path;
  {
    TensorBoardWriter writer(folder.file("run"));
    writer.scalar("loss/mel", 120, 3.25);
    writer.text("config", 1, "    {\"a\": \"ሰላም\"}");
    writer.image("alignment", 5, "PNGBYTES", 40, 30);
    const std::vector<double> values{1, 2, 2, 3, 9, NAN, INFINITY};
    writer.histogram("lengths", 7, values, 4);
    writer.audio("sample", 8, "RIFFxxxx", 22050, 1, 4410);
    writer.flush();
    path = writer.path();
  }
  const auto all = records(path);
  ASSERT_EQ(all.size(), 7u);
  EXPECT_EQ(field(parse(all[0]), 3), "brain.Event:2");
  EXPECT_NEAR(real(parse(all[0]), 1), static_cast<double>(::time(nullptr)), 60);

  const Message scalar = parse(all[2]);
  EXPECT_EQ(integer(scalar, 2), 120);
  EXPECT_EQ(field(value_of(scalar), 1), "loss/mel");
  EXPECT_EQ(read_as<float>(field(value_of(scalar), 2)), 3.25f);

  const Message text = value_of(parse(all[3]));
  EXPECT_EQ(field(parse(field(text, 8)), 8), "    {\"a\": \"ሰላም\"}");
  EXPECT_EQ(integer(parse(field(text, 8)), 1), 7);
  EXPECT_EQ(field(parse(field(parse(field(text, 9)), 1)), 1), "text");

  const Message image = parse(field(value_of(parse(all[4])), 4));
  EXPECT_EQ(integer(image, 1), 30);
  EXPECT_EQ(integer(image, 2), 40);
  EXPECT_EQ(field(image, 4), "PNGBYTES");

  const Message histogram = parse(field(value_of(parse(all[5])), 5));
  EXPECT_EQ(real(histogram, 1), 1);
  EXPECT_EQ(real(histogram, 2), 9);
  EXPECT_EQ(real(histogram, 3), 5);
  EXPECT_EQ(real(histogram, 4), 17);
  EXPECT_EQ(real(histogram, 5), 1 + 4 + 4 + 9 + 81);
  EXPECT_EQ(doubles(field(histogram, 6)), (std::vector<double>{3, 5, 7, 9}));
  EXPECT_EQ(doubles(field(histogram, 7)), (std::vector<double>{4, 0, 0, 1}));

  const Message audio = parse(field(value_of(parse(all[6])), 6));
  EXPECT_EQ(read_as<float>(field(audio, 1)), 22050.0f);
  EXPECT_EQ(integer(audio, 3), 4410);
  EXPECT_EQ(field(audio, 4), "RIFFxxxx");
  EXPECT_EQ(field(audio, 5), "audio/wav");
}

TEST(TensorBoard, ResumeAndRollbackWriteStartMarks) {
  testing::TemporaryFolder folder;
  TensorBoardWriter fresh(folder.path());
  TensorBoardWriter resumed(folder.path(), 501);
  resumed.scalar("loss", 501, 1);
  resumed.purge_from(400);
  fresh.flush();
  resumed.flush();
  EXPECT_NE(fresh.path(), resumed.path());
  const auto first = records(fresh.path());
  ASSERT_EQ(first.size(), 2u);
  EXPECT_EQ(integer(parse(first[1]), 2), 0);
  EXPECT_EQ(integer(parse(field(parse(first[1]), 7)), 1), 1);
  const auto all = records(resumed.path());
  ASSERT_EQ(all.size(), 4u);
  for (const auto& [at, step] : {std::pair{1u, 501}, std::pair{3u, 400}}) {
    EXPECT_EQ(integer(parse(all[at]), 2), step);
    EXPECT_EQ(integer(parse(field(parse(all[at]), 7)), 1), 1);  // SessionLog.START
  }
}

TEST(TensorBoard, NothingFiniteGivesNoHistogramAndOneValueOneBin) {
  testing::TemporaryFolder folder;
  TensorBoardWriter writer(folder.path());
  writer.histogram("h", 1, std::vector<double>{NAN});
  writer.histogram("h", 1, std::vector<double>{});
  writer.histogram("h", 2, std::vector<double>{4, 4, 4});
  writer.flush();
  const auto all = records(writer.path());
  ASSERT_EQ(all.size(), 3u);
  const Message histogram = parse(field(value_of(parse(all[2])), 5));
  EXPECT_EQ(doubles(field(histogram, 6)), (std::vector<double>{4}));
  EXPECT_EQ(doubles(field(histogram, 7)), (std::vector<double>{3}));
}

TEST(TensorBoard, AnUnwritableFolderIsAWarningOnly) {
  testing::TemporaryFolder folder;
  const std::string taken = folder.write("file", "not a folder");
  ::testing::internal::CaptureStderr();
  TensorBoardWriter writer(taken);
  for (int step = 0; step < 3; ++step) {
    writer.scalar("loss", step, 1);
    writer.flush();
  }
  const std::string printed = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(writer.path(), "");
  const auto first = printed.find("warning");
  ASSERT_NE(first, std::string::npos) << printed;
  EXPECT_EQ(printed.find("warning", first + 1), std::string::npos) << printed;
}

// A disk that takes a few bytes of a write and then is full, until it is told to recover.
class FullDisk final : public FileOps {
 public:
  bool full = false;
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
    if (!full) return FileOps::pwrite(fd, data, size, offset);
    if (!partial_) return errno = ENOSPC, -1;
    partial_ = false;
    return FileOps::pwrite(fd, data, std::min<std::size_t>(size, 5), offset);
  }

 private:
  bool partial_ = true;
};

TEST(TensorBoard, AFullDiskLeavesWholeRecordsAndRecovers) {
  testing::TemporaryFolder folder;
  FullDisk disk;
  ScopedFileOps scope(disk);
  TensorBoardWriter writer(folder.path());
  writer.scalar("loss", 1, 1);
  writer.flush();
  disk.full = true;
  ::testing::internal::CaptureStderr();
  writer.scalar("loss", 2, 2);
  writer.flush();
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("No space"), std::string::npos);
  EXPECT_EQ(records(writer.path()).size(), 3u);
  // A disk that stays full for long must not fill the memory instead: the backlog is dropped at 16 MiB.
  for (int i = 0; i < 20; ++i) writer.text("big", 3, std::string(1 << 20, 'x'));
  writer.flush();
  disk.full = false;
  writer.scalar("loss", 4, 4);
  writer.flush();
  const auto all = records(writer.path());
  EXPECT_LT(std::filesystem::file_size(writer.path()), std::uintmax_t{17} << 20);
  EXPECT_EQ(integer(parse(all.back()), 2), 4);
}

TEST(TensorBoard, TheMarksSurviveADroppedBacklog) {
  testing::TemporaryFolder folder;
  const std::string target = folder.write("run", "in the way");
  TensorBoardWriter writer(target, 11);
  for (int i = 0; i < 20; ++i) writer.text("big", 12, std::string(1 << 20, 'x'));
  std::filesystem::remove(target);
  writer.scalar("loss", 13, 1);
  writer.flush();
  const auto all = records(writer.path());
  ASSERT_GE(all.size(), 3u);
  EXPECT_EQ(field(parse(all[0]), 3), "brain.Event:2");
  EXPECT_EQ(integer(parse(all[1]), 2), 11);
}

TEST(TensorBoard, FlushesByItselfWhenTheTimeHasCome) {
  testing::TemporaryFolder folder;
  TensorBoardWriter writer(folder.path(), 0, std::chrono::seconds(0));
  writer.scalar("loss", 1, 1);
  ASSERT_NE(writer.path(), "");
  EXPECT_EQ(records(writer.path()).size(), 3u);
}

TEST(TensorBoard, ManyThreadsWriteWholeRecords) {
  testing::TemporaryFolder folder;
  TensorBoardWriter writer(folder.path());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&writer, t] {
      for (int i = 0; i < 200; ++i) writer.scalar("loss/" + std::to_string(t), i, i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  writer.flush();
  EXPECT_EQ(records(writer.path()).size(), 802u);
}

}  // namespace
}  // namespace train_gpt_v2
