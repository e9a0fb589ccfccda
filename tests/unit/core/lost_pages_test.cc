#include "train_gpt_v2/core/lost_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <numeric>

#include "support/test_files.h"
#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

using testing::TemporaryFolder;

int sum_of(const MappedFile& file) {
  return std::accumulate(file.bytes().begin(), file.bytes().end(), 0,
                         [](int sum, std::byte byte) { return sum + std::to_integer<int>(byte); });
}

TEST(LostPages, ATruncatedManifestWasASigbus) {
  const TemporaryFolder folder;
  const std::string path = folder.write("data", std::string(100'000, '\1'));
  const MappedFile file(path), other(folder.write("other", std::string(10'000, '\1')));
  mark_lost_pages(file);
  EXPECT_EQ(sum_of(file), 100'000);
  check_lost_pages(file);
  ASSERT_EQ(::truncate(path.c_str(), 8192), 0);
  EXPECT_EQ(sum_of(file), 8192);  // zeros behind the cut
  try {
    check_lost_pages(file);
    FAIL() << "nothing was noticed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "IO008");
    EXPECT_EQ(error.place(), path);
  }
  check_lost_pages(other);
  EXPECT_EQ(sum_of(other), 10'000);
}

TEST(LostPages, ACutWithinTheLastPageWasNotNoticed) {
  const TemporaryFolder folder;
  const std::string path = folder.write("data", std::string(100'000, '\1'));
  const MappedFile file(path);
  mark_lost_pages(file);
  check_not_cut(file);
  ASSERT_EQ(::truncate(path.c_str(), 99'990), 0);
  EXPECT_EQ(sum_of(file), 99'990);
  check_lost_pages(file);  // all pages are there
  EXPECT_THROW(check_not_cut(file), Error);
}

TEST(LostPages, AShorterFileRenamedOverTheMappedOneIsNoCut) {
  const TemporaryFolder folder;
  const std::string path = folder.write("data", std::string(100'000, '\1'));
  const MappedFile file(path);
  mark_lost_pages(file);
  ASSERT_EQ(::rename(folder.write("new", "short").c_str(), path.c_str()), 0);
  check_not_cut(file);
  EXPECT_EQ(sum_of(file), 100'000);
}

TEST(LostPages, AFileThatIsNotMarkedEndsTheProcessWithItsName) {
  const TemporaryFolder folder;
  const std::string path = folder.write("data", std::string(100'000, '\1'));
  EXPECT_EXIT(
      {
        const MappedFile file(path);
        if (::truncate(path.c_str(), 0) != 0) ::_exit(1);
        ::_exit(sum_of(file) == 0 ? 2 : 3);
      },
      ::testing::ExitedWithCode(74), "error.IO008.*\n.*/data\n");
}

TEST(LostPages, ARangeThatIsUsedAgainStartsAnew) {
  const TemporaryFolder folder;
  for (int round = 0; round < 3; ++round) {
    const std::string path = folder.write("data", std::string(50'000, '\1'));
    const MappedFile file(path);
    mark_lost_pages(file);
    EXPECT_EQ(sum_of(file), 50'000);
    check_lost_pages(file);
    ASSERT_EQ(::truncate(path.c_str(), 0), 0);
    EXPECT_EQ(sum_of(file), 0);
    EXPECT_THROW(check_lost_pages(file), Error);
  }
}

}  // namespace
}  // namespace train_gpt_v2
