// Text, random numbers, checksums, errors, files: the ground everything stands on.
#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "support/test_files.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/error_codes.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/hash.h"
#include "train_gpt_v2/core/json_dump.h"
#include "train_gpt_v2/core/random.h"
#include "train_gpt_v2/core/signals.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {
namespace {

using ::testing::ElementsAre;
using testing::TemporaryFolder;

TEST(Philox, KnownAnswers) {  // Random123's kat_vectors, philox4x32-10
  EXPECT_THAT(philox4x32({0, 0, 0, 0}, {0, 0}), ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(RandomStream, ContinuesFromItsState) {
  RandomStream stream(7, 3);
  for (int i = 0; i < 5; ++i) stream.next_u32();
  RandomStream copy(stream.state());
  for (int i = 0; i < 20; ++i) EXPECT_EQ(stream.next_u32(), copy.next_u32());
}

TEST(RandomStream, PermutationIsFixedForEver) {  // runs of other machines must see the same order
  RandomStream stream(1234, 1);
  const auto order = random_permutation(8, stream);
  RandomStream again(1234, 1);
  EXPECT_EQ(order, random_permutation(8, again));
  std::vector<std::uint32_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_THAT(sorted, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(order, ElementsAre(4, 6, 7, 3, 2, 5, 1, 0));
}

TEST(RandomStream, BelowIsUniform) {
  RandomStream stream(1, 1);
  std::array<int, 6> count{};
  for (int i = 0; i < 60000; ++i) ++count[stream.below(6)];
  for (const int n : count) EXPECT_NEAR(n, 10000, 400);  // four standard deviations
}

TEST(Text, ExactNumbersReadBack) {
  for (const double value : {0.1, 1.0 / 3, 1e300, -2.5e-7, 0.0, 12345678.0}) {
    EXPECT_EQ(std::stod(exact_number(value)), value) << exact_number(value);
  }
  EXPECT_EQ(exact_number(2), "2.0");
}

TEST(Text, SuggestsTheNearestName) {
  const std::vector<std::string> names{"learning_rate", "weight_decay", "schedule"};
  EXPECT_EQ(nearest_name("learning_rte", names), "learning_rate");
  EXPECT_EQ(nearest_name("wieght_decay", names), "weight_decay");
  EXPECT_EQ(nearest_name("zzz", names), "");
}

TEST(Text, RecognisesBadUtf8) {
  EXPECT_TRUE(valid_utf8("ሰላም é z"));
  for (const char* bad : {"\x80", "\xC0\xAF", "\xE0\x80\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE1\x88", "\xFF"}) {
    EXPECT_FALSE(valid_utf8(bad));
  }
}

TEST(Text, NothingForATerminalToObeyIsPrintable) {
  EXPECT_EQ(printable_text("ሰላም é z"), "ሰላም é z");
  EXPECT_EQ(printable_text("a\x1b[2J\n\x7f"), "a?[2J??");
  EXPECT_EQ(printable_text("\xC2\x9B"
                           "2J\xC2\xA0"),
            "?2J\xC2\xA0")
      << "U+009B is ESC [ in one character";
  EXPECT_EQ(printable_text("x\xFFy"), "x?y");
  EXPECT_EQ(printable_text(std::string(199, 'a') + "ሰ"), std::string(199, 'a') + "...") << "no character is cut";
}

TEST(Json, TextThatIsNotUtf8IsNoReasonToLoseAResult) {
  EXPECT_EQ(dump_json(nlohmann::json{{"file", "caf\xE9"}}), "{\"file\":\"caf\xEF\xBF\xBD\"}");
}

TEST(Hash, KnownAnswers) {
  const std::string_view digits = "123456789";
  EXPECT_EQ(crc32(std::as_bytes(std::span(digits.data(), digits.size()))), 0xCBF43926u);
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Error, ReportNamesPlaceDetailsAndFix) {
  const Error error = Error("DAT001", "bad code").where("m.jsonl", 12, 3).detail("found 9000").fix("repair it");
  EXPECT_EQ(error.report(), "error[DAT001]: bad code\n  --> m.jsonl:12:3\n  found 9000\n  fix: repair it\n");
  EXPECT_EQ(error.status(), ExitStatus::kBadData);
}

TEST(ErrorCodes, AreWellFormedAndUnique) {
  std::string last;
  std::vector<std::string> seen;
  for (const ErrorCode& code : error_codes()) {
    EXPECT_TRUE(code.code.size() == 6 || code.code.size() == 5) << code.code;
    EXPECT_FALSE(code.title.empty());
    EXPECT_FALSE(code.explain.empty());
    EXPECT_EQ(std::count(seen.begin(), seen.end(), code.code), 0) << code.code;
    seen.emplace_back(code.code);
  }
  EXPECT_NE(find_error_code("cfg001"), nullptr);
  EXPECT_EQ(find_error_code("CFG999"), nullptr);
}

TEST(AtomicFile, AppearsOnlyWhenCommitted) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a", "old");
  {
    AtomicFile file(path, 1 << 20);
    file.write("new content");
    EXPECT_EQ(read_file(path, 100), "old");
  }
  EXPECT_EQ(read_file(path, 100), "old");
  {
    AtomicFile file(path, 1 << 20);
    file.write("new content");
    file.commit();
  }
  EXPECT_EQ(read_file(path, 100), "new content");
  EXPECT_EQ(list_directory(folder.path()).size(), 1u);
}

TEST(AtomicFile, WhatAKilledProcessOfTheSameNumberLeftIsNotInTheWay) {
  const TemporaryFolder folder, elsewhere;
  const std::string path = folder.file("a"), other = elsewhere.write("other", "untouched");
  const auto next_name = [&] {  // temporary names end in a serial number
    std::string name;
    {
      const AtomicFile now(path);
      name = list_directory(folder.path()).back();
    }
    const std::size_t serial = name.rfind('.') + 1;
    return concat(name.substr(0, serial), std::stoul(name.substr(serial)) + 1);
  };
  folder.write(next_name(), "half of it");
  write_file_atomically(path, "one");
  EXPECT_EQ(read_file(path, 100), "one");
  std::filesystem::create_symlink(other, folder.file(next_name()));
  write_file_atomically(path, "two");
  EXPECT_FALSE(std::filesystem::is_symlink(path));
  EXPECT_EQ(read_file(path, 100), "two");
  EXPECT_EQ(read_file(other, 100), "untouched") << "links are not followed";
  EXPECT_THAT(list_directory(folder.path()), ElementsAre("a"));
}

TEST(AtomicFile, AFolderInItsPlaceIsAnOutputThatCannotBeCreated) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder.file("a"));
  try {
    write_file_atomically(folder.file("a"), "x");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.status(), ExitStatus::kCannotCreate) << error.report();
  }
}

TEST(Files, LimitsAndKindsAreChecked) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a", "12345");
  EXPECT_THROW(read_file(path, 4), Error);
  EXPECT_THROW(read_file(folder.file("missing"), 4), Error);
  EXPECT_THROW(read_file(folder.path(), 4), Error);
  EXPECT_THROW(read_file("/dev/zero", 4), Error);
}

TEST(PublishLink, ReplacesAtomically) {
  const TemporaryFolder folder;
  const std::string a = folder.write("a", "A"), b = folder.write("b", "B"), name = folder.file("latest");
  publish_link(a, name);
  EXPECT_EQ(read_file(name, 9), "A");
  publish_link(b, name);
  EXPECT_EQ(read_file(name, 9), "B");
  publish_link(b, name);
  EXPECT_EQ(list_directory(folder.path()).size(), 3u);
}

TEST(RunLock, KeepsASecondProcessOut) {
  const TemporaryFolder folder;
  const RunLock lock(folder.path());
  EXPECT_THROW(RunLock{folder.path()}, Error);
}

TEST(Signals, OnlyTheSecondRealInterruptLeavesAtOnce) {
  EXPECT_EXIT(
      {
        install_signal_handlers();
        request_stop(ExitStatus::kSigint);  // a `stop` file, or what the ranks agreed on
        ::raise(SIGINT);
        ::_exit(stop_requested() == ExitStatus::kSigint ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
  EXPECT_EXIT(
      {
        install_signal_handlers();
        ::raise(SIGINT);
        reset_signal_flags();
        ::raise(SIGINT);
        std::fputs("still here", stderr);
        ::raise(SIGINT);
        ::_exit(1);
      },
      ::testing::ExitedWithCode(130), "still here");
}

// Removes nothing.
class NothingGoes final : public FileOps {
 public:
  int unlink(const std::string& /*path*/) override {
    errno = EACCES;
    return -1;
  }
};

TEST(TriggerFiles, FoldersAndFilesThatCannotBeRemovedDoNothing) {
  const TemporaryFolder folder;
  const std::string save = folder.file("save"), stop = folder.file("stop");
  reset_signal_flags();
  std::filesystem::create_directory(save);
  std::filesystem::create_directory(stop);
  poll_trigger_files(folder.path());
  EXPECT_FALSE(take_save_request());
  EXPECT_EQ(stop_requested(), ExitStatus::kOk);
  std::filesystem::remove(save);
  std::filesystem::remove(stop);
  folder.write("save", "");
  folder.write("stop", "");
  {
    NothingGoes ops;
    const ScopedFileOps scope(ops);
    ::testing::internal::CaptureStderr();
    for (int i = 0; i < 3; ++i) poll_trigger_files(folder.path());
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 2) << said;
    EXPECT_NE(said.find(save), std::string::npos) << said;
    EXPECT_NE(said.find(stop), std::string::npos) << said;
    EXPECT_FALSE(take_save_request());
    EXPECT_EQ(stop_requested(), ExitStatus::kOk);
  }
  poll_trigger_files(folder.path());
  EXPECT_TRUE(take_save_request());
  EXPECT_EQ(stop_requested(), ExitStatus::kSigint);
  EXPECT_TRUE(list_directory(folder.path()).empty());
  reset_signal_flags();
}

}  // namespace
}  // namespace train_gpt_v2
