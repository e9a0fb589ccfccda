#include "train_gpt_v2/train/tensorboard.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <thread>
#include <vector>

#include "support/test_files.h"
#include "train_gpt_v2/core/filesystem.h"

namespace train_gpt_v2 {
namespace {

// --- an independent reading of TFRecord and the protobuf wire format -------------------------------------------------

std::uint32_t bitwise_crc32c(std::string_view data) {
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const unsigned char byte : data) {
    crc ^= byte;
    for (int i = 0; i < 8; ++i) crc = (crc & 1) ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
  }
  return crc ^ 0xFFFFFFFFu;
}

template <typename T>
T read_as(std::string_view bytes) {
  EXPECT_GE(bytes.size(), sizeof(T));
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

std::vector<std::string> records(const std::string& path) {
  const std::string file = read_file(path, 1 << 26);
  std::vector<std::string> found;
  const auto mask = [](std::uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; };
  for (std::size_t at = 0; at < file.size();) {
    if (file.size() - at < 16) {
      ADD_FAILURE() << "half a record at " << at;
      return found;
    }
    const auto size = read_as<std::uint64_t>(file.substr(at, 8));
    EXPECT_EQ(read_as<std::uint32_t>(file.substr(at + 8, 4)), mask(bitwise_crc32c(file.substr(at, 8))));
    if (file.size() - at - 16 < size) {
      ADD_FAILURE() << "half a record at " << at;
      return found;
    }
    found.push_back(file.substr(at + 12, size));
    EXPECT_EQ(read_as<std::uint32_t>(file.substr(at + 12 + size, 4)), mask(bitwise_crc32c(found.back())));
    at += 16 + size;
  }
  return found;
}

// Field number -> contents in order: varints and fixed fields as numbers' raw bytes, the rest as bytes.
using Message = std::multimap<int, std::string>;

Message parse(std::string_view data) {
  Message message;
  std::size_t at = 0;
  const auto varint = [&] {
    std::uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(data.at(at++));
      value |= std::uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < data.size()) {
    const std::uint64_t key = varint();
    std::string content;
    std::size_t size = 0;
    switch (key & 7) {
      case 0: {
        const std::uint64_t value = varint();
        content.assign(reinterpret_cast<const char*>(&value), 8);
        break;
      }
      case 1:
        size = 8;
        break;
      case 5:
        size = 4;
        break;
      case 2:
        size = varint();
        break;
      default:
        ADD_FAILURE() << "wire type " << (key & 7);
    }
    if ((key & 7) != 0) content = std::string(data.substr(at, size)), at += size;
    message.emplace(static_cast<int>(key >> 3), content);
  }
  return message;
}

std::string field(const Message& message, int number) {
  EXPECT_EQ(message.count(number), 1u) << "field " << number;
  const auto found = message.find(number);
  return found == message.end() ? std::string(8, '\0') : found->second;
}
std::int64_t integer(const Message& message, int number) {
  return read_as<std::int64_t>(field(message, number));
}
double real(const Message& message, int number) {
  return read_as<double>(field(message, number));
}
Message value_of(const Message& event) {
  return parse(field(parse(field(event, 5)), 1));
}
std::vector<double> doubles(const std::string& packed) {
  std::vector<double> values(packed.size() / 8);
  std::memcpy(values.data(), packed.data(), packed.size());
  return values;
}

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
