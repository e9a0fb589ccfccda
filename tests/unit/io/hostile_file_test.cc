// Damaged and forged checkpoint files: an error at once, in bounded memory, or provably no effect.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <ctime>
#include <random>

#include "support/forged_archive.h"
#include "support/test_files.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/io/safetensors.h"
#include "train_gpt_v2/io/torch_file.h"

namespace train_gpt_v2 {
namespace {

using namespace testing;  // NOLINT: the forging helpers are the vocabulary of this file
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

long peak_memory_kib() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

double processor_seconds() {  // of this thread: other processes may have the machine
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

class HostileFile : public ::testing::Test {
 protected:
  // The report of the error that reading `content` gives, or "accepted".
  std::string report_of(const std::string& content, long memory_kib = 16 << 10) {
    const std::string path = folder_.write("x.pth", content);
    const long before = peak_memory_kib();
    const double start = processor_seconds();
    std::string report = "accepted";
    try {
      read_tensor_file(path);
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == "CKP001" || error.code() == "CKP002") << error.report();
      EXPECT_EQ(error.place(), path);
      report = error.report();
    }
    EXPECT_LT(processor_seconds() - start, 0.1 * kSlow) << report;
    EXPECT_LE(peak_memory_kib() - before, memory_kib * kSlow) << report;
    return report;
  }
  std::string pickle_report(std::string_view body, long memory_kib = 16 << 10) {
    return report_of(forge_torch_file(pickle(body)), memory_kib);
  }
  LoadedFile load(std::string_view body) {
    return read_tensor_file(folder_.write("x.pth", forge_torch_file(pickle(body))));
  }

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static constexpr int kSlow = 20;
#else
  static constexpr int kSlow = 1;
#endif
  TemporaryFolder folder_;
};

TEST_F(HostileFile, TheForgedArchiveItselfIsFine) {
  const LoadedFile loaded = load(tensor(storage("0", 16), 2, {2, 3}, {4, 1}));
  EXPECT_THAT(loaded.root.as_tensor().shape, ElementsAre(2, 3));
  EXPECT_EQ(report_of(forge_torch_file(pickle(tensor(storage("0", 16), 0, {16}, {1})))), "accepted");
}

TEST_F(HostileFile, OtherKindsAreToldApart) {
  EXPECT_THAT(report_of(std::string("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", 20)),
              HasSubstr("before version 1.6"));
  EXPECT_THAT(report_of(pickle("}")), HasSubstr("bare pickle"));
  EXPECT_THAT(report_of("<!DOCTYPE html><html>"), HasSubstr("HTML"));
  EXPECT_THAT(report_of(""), HasSubstr("empty"));
  EXPECT_THAT(report_of(forge_zip({{"a.npy", "x"}})), HasSubstr("no data.pkl"));
  EXPECT_THAT(report_of(forge_torch_file(pickle("}"), {{"archive/constants.pkl", "x"}})), HasSubstr("TorchScript"));
  EXPECT_THAT(report_of(forge_torch_file(pickle("}"), {{"other/data.pkl", "x"}})), HasSubstr("several data.pkl"));
  EXPECT_THAT(report_of(forge_torch_file(pickle("}"), {{"archive/byteorder", "big"}})), HasSubstr("big-endian"));
  EXPECT_THROW(read_tensor_file(folder_.path()), Error);
  const std::string pipe = folder_.file("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THROW(read_tensor_file(pipe), Error);
}

TEST_F(HostileFile, ZipStructure) {
  const std::string good = pickle("}");
  const auto with = [&](ForgedEntry entry) { return report_of(forge_torch_file(good, {std::move(entry)})); };
  const auto entry = [](std::string name) {
    ForgedEntry made;
    made.name = std::move(name);
    made.content = "payload";
    return made;
  };
  ForgedEntry forged = entry("archive/a");
  forged.method = 8;
  EXPECT_THAT(with(forged), HasSubstr("compressed"));
  forged = entry("archive/a");
  forged.flags = 0x0801;
  EXPECT_THAT(with(forged), HasSubstr("encrypted"));
  for (const std::string& name :
       {std::string("../up"), std::string("archive/../up"), std::string("/etc/passwd"), std::string("a\\b"),
        std::string("a\0b", 3), std::string(300, 'x'), std::string(), std::string("a\xc0\xaf")}) {
    EXPECT_THAT(with(entry(name)), HasSubstr("an entry is called"));
  }
  EXPECT_THAT(with(entry("archive/data.pkl")), HasSubstr("twice"));
  forged = entry("archive/a");
  forged.central_name = "archive/b";
  EXPECT_THAT(with(forged), HasSubstr("does not match the table"));
  forged = entry("archive/a");
  forged.offset = 0;
  EXPECT_THAT(with(forged), HasSubstr("does not match the table"));
  forged = entry("archive/a");
  forged.size = 0xFFFFFFF0;
  EXPECT_THAT(with(forged), HasSubstr("beyond the file"));
  forged.size = 7;
  forged.stored = 6;
  EXPECT_THAT(with(forged), HasSubstr("disagree"));
  forged = entry("archive/a");
  forged.crc = 1;
  EXPECT_THAT(with(forged), HasSubstr("checksum"));
  forged = entry("archive/a");
  forged.size = 0xFFFFFFFF;  // ZIP64: eight exbibytes
  forged.central_extra = u16(1) + u16(16) + u64(std::uint64_t{1} << 63) + u64(std::uint64_t{1} << 63);
  EXPECT_THAT(with(forged), HasSubstr("beyond the file"));
  forged.central_extra = u16(1) + u16(8) + u64(7);
  EXPECT_THAT(with(forged), HasSubstr("cut off"));
  forged.central_extra = u16(1) + u16(400);
  EXPECT_THAT(with(forged), HasSubstr("cut off"));
  // Two entries over the same bytes: 42.zip's trick without compression.
  ForgedEntry twin = entry("archive/a");
  const std::string outer = "PK\x03\x04" + u16(20) + u16(0x0800) + u16(0) + u16(0) + u16(33) + u32(0) + u32(0) +
                            u32(0) + u16(9) + u16(0) + "archive/b" + "payload";
  twin.content = outer;
  ForgedEntry inner = entry("archive/b");
  inner.offset = forge_zip({{"archive/data.pkl", good}}).find("PK\x01\x02") + 30 + 9;
  EXPECT_THAT(report_of(forge_zip({{"archive/data.pkl", good}, twin, inner})), HasSubstr("overlaps"));
}

TEST_F(HostileFile, ZipEndRecords) {
  const std::vector<ForgedEntry> entries{{"archive/data.pkl", pickle("}")}};
  const auto with = [&](ForgedEnd end) { return report_of(forge_zip(entries, end)); };
  EXPECT_EQ(with({}), "accepted");
  EXPECT_EQ(with({.comment = "made by hand"}), "accepted");
  EXPECT_THAT(with({.count = 0}), HasSubstr("another length"));
  EXPECT_THAT(with({.count = 2}), HasSubstr("cut off"));
  EXPECT_THAT(with({.count = 65535}), HasSubstr("50000 are allowed"));
  EXPECT_THAT(with({.size = 0xFFFFFFFF}), HasSubstr("outside the file"));
  EXPECT_THAT(with({.size = 10}), HasSubstr("outside the file"));
  EXPECT_THAT(with({.offset = 0}), HasSubstr("outside the file"));
  EXPECT_THAT(report_of(forge_zip(entries) + "x"), HasSubstr("table of contents"));
  EXPECT_THAT(report_of("PK\x03\x04"), HasSubstr("table of contents"));
}

TEST_F(HostileFile, ArchivesWithoutChecksumsAreReadAndSaidToBe) {
  std::vector<ForgedEntry> entries{{"nocrc/data.pkl", pickle(tensor(storage("0", 2), 0, {2}, {1}))},
                                   {"nocrc/data/0", std::string(8, '\0')}};
  for (ForgedEntry& entry : entries) entry.crc = 0;
  const LoadedFile loaded = read_tensor_file(folder_.write("x.pth", forge_zip(entries)));
  EXPECT_THAT(loaded.ignored, Contains(HasSubstr("checksums")));
}

TEST_F(HostileFile, PickleMachine) {
  EXPECT_THAT(report_of(forge_torch_file("")), HasSubstr("without STOP"));
  EXPECT_THAT(report_of(forge_torch_file("\x80\x02}")), HasSubstr("without STOP"));
  EXPECT_THAT(report_of(forge_torch_file("\x80\x01}.")), HasSubstr("protocol 1"));
  for (const char* code : {"I12\n", "L12\n", "F1.5\n", "S'x'\n", "Vx\n", "P0\n", "p0\n", "g0\n", "(cos\nsystem\ni",
                           "(ios\nsystem\n", "(o", "\x82\x01", "\x83\x01\x01", "\x84\x01\x01\x01\x01", "\xff"}) {
    EXPECT_THAT(pickle_report(code), HasSubstr("is not")) << code;
  }
  for (const char* code :
       {"a", "s", "u", "t", "R", "b", "Q", "\x81", "\x92", "\x93", "q\x01", "0", "1", "2", "e", "N(0N"}) {
    EXPECT_NE(pickle_report(code), "accepted") << code;
  }
  EXPECT_THAT(pickle_report("NN"), HasSubstr("left over"));
  EXPECT_THAT(pickle_report("(N"), HasSubstr("left over"));
  EXPECT_THAT(pickle_report("h\x05"), HasSubstr("remembered"));
  EXPECT_THAT(pickle_report("X\xff\xff\xff\xff"
                            "abc"),
              HasSubstr("4294967295"));
  EXPECT_THAT(pickle_report("\x8d" + u64(std::uint64_t{1} << 63)), HasSubstr("9223372036854775808"));
  EXPECT_THAT(pickle_report("\x8b" + u32(0x7FFFFFFF)), HasSubstr("an integer of"));
  EXPECT_THAT(pickle_report("X" + u32(2) + "\xff\xfe"), HasSubstr("UTF-8"));
  EXPECT_THAT(pickle_report("cos\n" + std::string(400, 'x') + "\n"), HasSubstr("too long"));
  EXPECT_THAT(pickle_report("cos"), HasSubstr("cut off"));
}

TEST_F(HostileFile, TargetsOfWritesAreChecked) {  // CVE-2026-24747
  for (const std::string& target :
       {std::string("]"), std::string(")"), std::string("K\x01"), text("x"), std::string("N"),
        tensor(storage("0", 16), 0, {16}, {1}), storage("0", 16), std::string("cos\nsystem\n")}) {
    EXPECT_THAT(pickle_report(target + text("k") + "Ns"), HasSubstr("no dict"));
    EXPECT_THAT(pickle_report(target + "(" + text("k") + "Nu"), HasSubstr("no dict"));
    if (target != "]") {
      EXPECT_THAT(pickle_report(target + "Na"), HasSubstr("no list"));
      EXPECT_THAT(pickle_report(target + "(NNe"), HasSubstr("no list"));
    }
  }
  EXPECT_THAT(pickle_report("}Na"), HasSubstr("no list"));
  EXPECT_THAT(pickle_report("](N}b"), ::testing::Ne("accepted"));
  EXPECT_THAT(pickle_report("K\x01}b"), HasSubstr("has none"));
  EXPECT_THAT(pickle_report("}(" + text("k") + "u"), HasSubstr("without a value"));
  EXPECT_THAT(pickle_report("}]Ns"), HasSubstr("cannot be one"));
}

TEST_F(HostileFile, CyclesAndGrowth) {
  EXPECT_THAT(pickle_report(std::string("]q\0h\0a", 6)), HasSubstr("contains itself"));
  EXPECT_THAT(pickle_report(std::string("}q\0K\1h\0s", 8)), HasSubstr("contains itself"));
  EXPECT_THAT(pickle_report(std::string("]q\0(h\0ta", 8)), HasSubstr("contains itself"));
  EXPECT_THAT(pickle_report(std::string("ca\nb\n)\x81q\0h\0b", 12)), HasSubstr("contains itself"));
  EXPECT_THAT(pickle_report("N" + std::string(200, '\x85')), HasSubstr("deeper than"));
  EXPECT_THAT(pickle_report("N" + std::string(500'000, '\x85'), 160 << 10), HasSubstr("deeper than"));
  EXPECT_THAT(pickle_report(std::string(900'000, '('), 64 << 10), HasSubstr("open containers"));
  EXPECT_THAT(pickle_report(std::string(900'000, 'N'), 64 << 10), HasSubstr("on the stack"));
  EXPECT_THAT(pickle_report(std::string(2'100'000, '\x95'), 64 << 10), ::testing::Ne("accepted"));
  // Ten references to ten references to ... thirty levels: 10^30 values in 800 bytes.
  std::string laughs = std::string("]q\0", 3);
  for (char level = 1; level <= 30; ++level) {
    laughs += "](";
    for (int i = 0; i < 10; ++i) laughs += std::string("h") + static_cast<char>(level - 1);
    laughs += std::string("eq") + level;
  }
  laughs += "N" + std::string(30, '\x86') +
            "0](h\x1e"
            "e";
  EXPECT_THAT(pickle_report(std::string("(") + laughs + "t"), ::testing::Ne("accepted"));
  // One text of 100 KB fifty thousand times: 5 GB.
  std::string echoes = text(std::string(100'000, 'x')) + std::string(
                                                             "q\0"
                                                             "0](",
                                                             5);
  for (int i = 0; i < 50'000; ++i) echoes += std::string("h\0", 2);
  EXPECT_THAT(pickle_report(echoes + "e", 32 << 10), HasSubstr("repeated"));
  std::string encoded = text(std::string(100'000, 'x')) + std::string(
                                                              "q\0"
                                                              "0](",
                                                              5);
  for (int i = 0; i < 1000; ++i) encoded += std::string("c_codecs\nencode\n(h\0", 19) + text("latin1") + "tR";
  EXPECT_THAT(pickle_report(encoded + "e", 32 << 10), HasSubstr("again and again"));
}

TEST_F(HostileFile, TensorsStayWithinTheirStorage) {
  const std::int64_t huge = std::int64_t{1} << 62;
  const auto report = [&](std::int64_t offset, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides) {
    return pickle_report(tensor(storage("0", 16), offset, shape, strides));
  };
  EXPECT_EQ(report(0, {4, 4}, {4, 1}), "accepted");
  EXPECT_EQ(report(15, {}, {}), "accepted");
  EXPECT_EQ(report(3, {0, 7}, {7, 1}), "accepted");
  EXPECT_THAT(report(-1, {2}, {1}), HasSubstr("before its storage"));
  EXPECT_THAT(report(16, {}, {}), HasSubstr("beyond its storage of 16"));
  EXPECT_THAT(report(13, {4}, {1}), HasSubstr("beyond"));
  EXPECT_THAT(report(0, {4, 4}, {5, 1}), HasSubstr("beyond"));
  EXPECT_THAT(report(0, {-1}, {1}), HasSubstr("size of a tensor"));
  EXPECT_THAT(report(0, {2}, {-1}), HasSubstr("stride of a tensor"));
  EXPECT_THAT(report(0, {huge, 8}, {1, 1}), HasSubstr("2^63"));
  EXPECT_THAT(report(0, {3}, {huge}), HasSubstr("2^63"));
  EXPECT_THAT(report(huge, {2, 2}, {huge, huge}), HasSubstr("2^63"));
  EXPECT_THAT(report(0, {0, huge, 8}, {1, 1, 1}), HasSubstr("2^63"));
  EXPECT_THAT(report(0, {1 << 20, 1 << 20}, {0, 0}), HasSubstr("larger than the file"));
  EXPECT_THAT(report(0, {2, 2}, {1}), HasSubstr("another number of sizes"));
  EXPECT_THAT(report(0, std::vector<std::int64_t>(100, 1), std::vector<std::int64_t>(100, 1)), HasSubstr("dimensions"));
  // Storages: the size in the archive is the only truth.
  EXPECT_THAT(pickle_report(tensor(storage("0", 17), 0, {1}, {1})), HasSubstr("has 64 bytes"));
  EXPECT_THAT(pickle_report(tensor(storage("0", 15), 0, {1}, {1})), HasSubstr("has 64 bytes"));
  EXPECT_THAT(pickle_report(tensor(storage("0", -1), 0, {1}, {1})), HasSubstr("has 64 bytes"));
  EXPECT_THAT(pickle_report(tensor(storage("0", huge), 0, {1}, {1})), HasSubstr("has 64 bytes"));
  EXPECT_THAT(pickle_report(tensor(storage("0", 16, "DoubleStorage"), 0, {1}, {1})), HasSubstr("has 64 bytes"));
  EXPECT_THAT(pickle_report(tensor(storage("1", 16), 0, {1}, {1})), HasSubstr("missing"));
  EXPECT_THAT(pickle_report(tensor(storage("../data/0", 16), 0, {1}, {1})), HasSubstr("missing"));
  EXPECT_THAT(pickle_report(tensor("N", 0, {1}, {1})), HasSubstr("no storage"));
  EXPECT_THAT(pickle_report("NQ"), HasSubstr("not described"));
  EXPECT_THAT(pickle_report("(" + text("module") + text("a") + text("b") + text("c") + "Nt" + "Q"),
              HasSubstr("not described"));
  EXPECT_THAT(pickle_report("ctorch._utils\n_rebuild_tensor_v2\n)R"), HasSubstr("number of arguments"));
}

TEST_F(HostileFile, NothingIsExecuted) {
  const std::string mark = folder_.file("executed");
  const std::string call = "cposix\nsystem\n(" + text("touch " + mark) + "tR";
  const LoadedFile loaded =
      load("}" + text("weights") + tensor(storage("0", 16), 0, {16}, {1}) + "s" + text("evil") + call + "s" +
           text("more") + "c__builtin__\neval\n(" + text("1") + "t\x81" + "}b" + "s");
  EXPECT_FALSE(file_exists(mark));
  EXPECT_TRUE(loaded.root.at("evil").is_opaque());
  EXPECT_EQ(loaded.root.at("evil").class_name(), "posix.system");
  EXPECT_THAT(loaded.root.at("weights").as_tensor().shape, ElementsAre(16));
  EXPECT_THAT(loaded.ignored,
              ElementsAre("more: object of class __builtin__.eval", "evil: object of class posix.system"));
  // A value that is needed but opaque is an error where it is used.
  EXPECT_THROW(loaded.root.at("evil").as_tensor("evil"), Error);
  // A callable made by a call is inert too.
  EXPECT_TRUE(load("cfunctools\npartial\n(cposix\nsystem\n" + text("true") + "tR)R").root.is_opaque());
}

TEST_F(HostileFile, UnknownStorageTypesBecomeOpaque) {
  const LoadedFile loaded =
      load("}" + text("odd") + tensor(storage("0", 16, "ComplexFloatStorage"), 0, {2}, {1}) + "s");
  EXPECT_TRUE(loaded.root.at("odd").is_opaque());
  EXPECT_THAT(loaded.ignored, Contains(HasSubstr("odd: object of class torch._utils._rebuild_tensor_v2")));
}

TEST_F(HostileFile, HarmlessObjectsAreRebuilt) {
  EXPECT_EQ(load("ctorch.torch_version\nTorchVersion\n" + text("2.1") + "\x85\x81").root.as_string(), "2.1");
  EXPECT_EQ(load("ctorch\nSize\n(K\x01K\x02t\x85R").root.items()[1].as_int(), 2);
  EXPECT_EQ(load("ccollections\ndefaultdict\n)R" + text("k") + "K\x05s").root.at("k").as_int(), 5);
  EXPECT_EQ(load("ccollections\nOrderedDict\n](](" + text("k") +
                 "K\x05"
                 "ee\x85R")
                .root.at("k")
                .as_int(),
            5);
  EXPECT_EQ(load("c_codecs\nencode\n" +
                 text("\xc3\xbf"
                      "a") +
                 text("latin1") + "\x86R")
                .root.as_bytes(),
            "\xff"
            "a");
  EXPECT_EQ(load("ctorch._utils\n_rebuild_parameter\n(" + tensor(storage("0", 16), 0, {4}, {1}) + "\x88NtR")
                .root.as_tensor()
                .numel(),
            4);
  const std::string dtype = "cnumpy\ndtype\n" + text("f8") + "\x89\x88\x87R";
  EXPECT_EQ(
      load("cnumpy._core.multiarray\nscalar\n" + dtype + "C\x08" + u64(0x3FF8000000000000) + "\x86R").root.as_double(),
      1.5);
  // Protocol 4: frames, short texts, memoize, stack globals.
  const std::string four = std::string("\x80\x04\x95", 3) + u64(30) + "}\x94\x8c\x01k\x94\x8c\x0b" +
                           "collections\x8c\x0bOrderedDict\x93)Rs.";
  EXPECT_TRUE(read_tensor_file(folder_.write("x.pth", forge_torch_file(four))).root.at("k").is_ordered_dict());
  EXPECT_EQ(load(std::string("\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00", 11)).root.big_int_text(),
            "18446744073709551615");
  EXPECT_EQ(load(std::string("\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\xff", 11)).root.big_int_text(),
            "-18446744073709551616");
  EXPECT_EQ(load(std::string("\x8a\x00", 2)).root.as_int(), 0);
}

// --- damage to a real file
// --------------------------------------------------------------------------------------------

Value small_checkpoint() {
  Value model = Value::ordered_dict();
  for (const char* name : {"a.weight", "a.bias", "b"}) {
    std::vector<std::byte> raw(4 * 24);
    for (std::size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<std::byte>(i * 31 + name[0]);
    model.set(name, Tensor::copy_of(DType::kFloat32, {4, 6}, raw));
  }
  return Value::dict().set("model", model).set("step", 28'000).set("lr", 2e-5).set("tokenizer", "am.model");
}

TEST_F(HostileFile, EveryTruncationIsNoticed) {
  write_torch_file(folder_.file("good.pth"), small_checkpoint());
  const std::string good = read_file(folder_.file("good.pth"), 1 << 20);
  for (std::size_t size = 0; size < good.size(); size += 7) {
    EXPECT_NE(report_of(good.substr(0, size)), "accepted") << size;
  }
}

TEST_F(HostileFile, EveryBitFlipIsNoticedOrWithoutEffect) {
  const Value expected = small_checkpoint();
  write_torch_file(folder_.file("good.pth"), expected);
  const std::string good = read_file(folder_.file("good.pth"), 1 << 20);
  const std::string path = folder_.write("bad.pth", good);
  const int file = ::open(path.c_str(), O_RDWR);
  ASSERT_GE(file, 0);
  std::mt19937 random(7);
  int noticed = 0, without_effect = 0;
  for (int i = 0; i < 2000; ++i) {
    // In place: a new file for each would take most of the time.
    const std::size_t at = random() % good.size();
    const char bad = static_cast<char>(good[at] ^ 1 << random() % 8);
    ASSERT_EQ(::pwrite(file, &bad, 1, static_cast<off_t>(at)), 1);
    try {
      const LoadedFile loaded = read_tensor_file(path);
      EXPECT_TRUE(identical(loaded.root, expected)) << i;
      EXPECT_THAT(loaded.ignored, ElementsAre());
      ++without_effect;
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), ExitStatus::kBadData) << error.report();
      ++noticed;
    }
    ASSERT_EQ(::pwrite(file, &good[at], 1, static_cast<off_t>(at)), 1);
  }
  ::close(file);
  EXPECT_EQ(noticed + without_effect, 2000);
  EXPECT_GT(noticed, 1000);  // the rest lies in padding, dates and local copies of sizes
}

TEST_F(HostileFile, SwappedAndZeroedRegionsAreNoticed) {
  const Value expected = small_checkpoint();
  write_torch_file(folder_.file("good.pth"), expected);
  const std::string good = read_file(folder_.file("good.pth"), 1 << 20);
  for (std::size_t at = 0; at + 128 <= good.size(); at += 64) {
    std::string bad = good;
    bad.replace(at, 64, 64, '\0');
    std::string swapped = good;
    std::swap_ranges(swapped.begin() + at, swapped.begin() + at + 64, swapped.begin() + at + 64);
    for (const std::string& content : {bad, swapped}) {
      try {
        EXPECT_TRUE(identical(read_tensor_file(folder_.write("bad.pth", content)).root, expected)) << at;
      } catch (const Error& error) {
        EXPECT_EQ(error.status(), ExitStatus::kBadData) << error.report();
      }
    }
  }
}

}  // namespace
}  // namespace train_gpt_v2
