// .npy files: numpy's own, ours, and forged ones.
#include "train_gpt_v2/io/npy.h"

#include <gmock/gmock.h>

#include <chrono>

#include "support/test_files.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"

namespace train_gpt_v2 {
namespace {

using testing::data_path;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

std::string npy(std::string header, std::string_view data = "", int version = 1) {
  std::string file("\x93NUMPY", 6);
  file += static_cast<char>(version);
  file += '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) file += static_cast<char>(header.size() >> 8 * i & 0xFF);
  return file + header + std::string(data);
}

TEST(Npy, ReadsWhatNumpyWroteAndWritesTheSameBytes) {
  const TemporaryFolder folder;
  for (const char* name : {"data/condition/spk001_000000.npy", "data/codes/spk001_000000.npy",
                           "data/emo_vec/spk001_000000.npy", "data/features/spk001_000000.npy",
                           "expected/conditioning/batch_mask.npy", "expected/conditioning/batch_emo_f64.npy"}) {
    const std::string path = data_path(std::string("fixtures/") + name);
    const Tensor tensor = read_npy(path);
    EXPECT_EQ(tensor.shape, read_npy_header(path).shape);
    write_npy(folder.file("a.npy"), tensor);
    EXPECT_EQ(read_file(folder.file("a.npy"), 1 << 20), read_file(path, 1 << 20)) << name;
  }
  EXPECT_THAT(read_npy(data_path("fixtures/data/condition/spk001_000000.npy")).shape, ElementsAre(32, 64));
}

TEST(Npy, ReadsAllVersionsAndTypes) {
  const TemporaryFolder folder;
  const auto ints = [&](const std::string& content) { return to_int_vector(read_npy(folder.write("a.npy", content))); };
  for (int version = 1; version <= 3; ++version) {
    EXPECT_THAT(
        ints(npy("{'descr': '<i2', 'fortran_order': False, 'shape': (2,), }\n", {"\x05\0\xff\xff", 4}, version)),
        ElementsAre(5, -1));
  }
  EXPECT_THAT(ints(npy("{\"shape\":(2),\"descr\":\"|u1\",\"fortran_order\":False}", {"\x05\xff", 2})),
              ElementsAre(5, 255));
  EXPECT_THAT(ints(npy("{'descr': '<u2', 'fortran_order': False, 'shape': (), }", {"\xff\xff", 2})),
              ElementsAre(65535));
  EXPECT_THAT(ints(npy("{'descr': '<i8', 'fortran_order': False, 'shape': (0, 7)}")), ElementsAre());
  EXPECT_THAT(to_float_vector(read_npy(folder.write(
                  "a.npy", npy("{'descr': '<f2', 'fortran_order': False, 'shape': (1,), }", {"\x00\x3c", 2})))),
              ElementsAre(1.0f));
}

TEST(Npy, RefusesForgedFilesAtOnce) {
  const TemporaryFolder folder;
  const auto error_of = [&](const std::string& content) {
    const std::string path = folder.write("bad.npy", content);
    const auto start = std::chrono::steady_clock::now();
    try {
      read_npy(path);
    } catch (const Error& error) {
      EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(50));
      EXPECT_EQ(error.code(), "IO006");
      EXPECT_EQ(error.place(), path);
      return error.report();
    }
    return std::string("accepted");
  };
  const std::string start = "{'descr': '<f4', 'fortran_order': False, 'shape': ";
  EXPECT_THAT(error_of(""), HasSubstr("not a .npy file"));
  EXPECT_THAT(error_of("PK\x03\x04 and so on"), HasSubstr("not a .npy file"));
  EXPECT_THAT(error_of(npy(start + "(4,), }", "0123456789ab")), HasSubstr("needs 16 bytes, the file holds 12"));
  EXPECT_THAT(error_of(npy(start + "(4,), }", "0123456789abcdefg")), HasSubstr("the file holds 17"));
  EXPECT_THAT(error_of(npy(start + "(1152921504606846976,), }")), HasSubstr("does not fit"));
  EXPECT_THAT(error_of(npy(start + "(4294967296, 4294967296), }")), HasSubstr("more than 2^63"));
  EXPECT_THAT(error_of(npy(start + "(9223372036854775807, 2, 0), }", "x")), HasSubstr("does not fit"));
  EXPECT_THAT(error_of(npy(start + "(0, 22222222222222203, 2217), }")), HasSubstr("more than 2^63"));
  EXPECT_THAT(error_of(npy(start + "(99999999999999999999,), }")), HasSubstr("64 bits"));
  EXPECT_THAT(error_of(npy(start + "(-1,), }")), HasSubstr("non-negative"));
  std::string many = "(";
  for (int i = 0; i < 1000; ++i) many += "1,";
  EXPECT_THAT(error_of(npy(start + many + "), }", "0123")), HasSubstr("dimensions"));
  EXPECT_THAT(error_of(npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")), HasSubstr("never read"));
  EXPECT_THAT(error_of(npy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", "0123")),
              HasSubstr("big-endian"));
  EXPECT_THAT(error_of(npy("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }")), HasSubstr("<c8"));
  EXPECT_THAT(error_of(npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }")),
              HasSubstr("structured"));
  EXPECT_THAT(error_of(npy("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1), }", "0123")),
              HasSubstr("ascontiguousarray"));
  EXPECT_THAT(error_of(npy("{'descr': '<f4', 'fortran_order': False, }")), HasSubstr("lacks"));
  EXPECT_THAT(error_of(npy(start + "(1,), 'shape': (1,)}", "0123")), HasSubstr("repeated key"));
  EXPECT_THAT(error_of(npy(start + "(1,), 'eval': '__import__'}", "0123")), HasSubstr("unknown"));
  EXPECT_THAT(error_of(npy(start + "(1,)} junk", "0123")), HasSubstr("follows"));
  EXPECT_THAT(error_of(npy(start + "(1,)", "0123")), HasSubstr("malformed"));
  EXPECT_THAT(error_of(npy(start + "(1,)}" + std::string(5000, ' '), "0123")), HasSubstr("4096"));
  EXPECT_THAT(error_of(npy(start + "(1,)}", "", 4)), HasSubstr("version 4"));
  std::string long_header = npy("", "", 2);
  long_header.replace(8, 4, "\xff\xff\xff\xff");
  EXPECT_THAT(error_of(long_header), HasSubstr("4294967295"));
  EXPECT_THAT(error_of(npy(start + "(1,)}").substr(0, 30)), HasSubstr("ends inside"));
}

TEST(Npy, EveryTruncationOfARealFileIsRefused) {
  const TemporaryFolder folder;
  const std::string whole = read_file(data_path("fixtures/data/codes/spk001_000000.npy"), 1 << 20);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THROW(read_npy(folder.write("cut.npy", whole.substr(0, size))), Error) << size;
  }
}

TEST(Npy, LargeFilesAreMapped) {
  const TemporaryFolder folder;
  Tensor large = Tensor::zeros(DType::kInt64, {30'000});
  auto* out = reinterpret_cast<std::int64_t*>(const_cast<std::byte*>(large.data));
  for (int i = 0; i < 30'000; ++i) out[i] = i * 7;
  write_npy(folder.file("large.npy"), large);
  EXPECT_EQ(to_int_vector(read_npy(folder.file("large.npy"))), to_int_vector(large));
}

TEST(Npy, MissingFilesSayWhich) {
  try {
    read_npy("/nonexistent/x.npy");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "IO001");
    EXPECT_EQ(error.place(), "/nonexistent/x.npy");
  }
}

}  // namespace
}  // namespace train_gpt_v2
