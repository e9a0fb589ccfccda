// Small files that ask for much: refused at once, before anything large is allocated.
#include <malloc.h>
#include <time.h>

#include <algorithm>
#include <fstream>
#include <functional>

#include "store_test_support.h"
#include "support/forged_archive.h"
#include "train_gpt_v2/config/loader.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/data/manifest.h"
#include "train_gpt_v2/data/tokenizer.h"
#include "train_gpt_v2/io/npy.h"
#include "train_gpt_v2/io/safetensors.h"

namespace train_gpt_v2 {
namespace {

using testing::figure;
using testing::forge_torch_file;
using testing::forge_zip;
using testing::ForgedEntry;
using testing::pickle;
using testing::storage;
using testing::TemporaryFolder;
using testing::tensor;
using testing::u16;
using testing::u32;
using testing::u64;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kShare = 10;  // of the instrumentation: its checks, shadow memory, freed blocks that it keeps
#else
constexpr int kShare = 1;
#endif
constexpr double kMaxSeconds = 0.05 * kShare;       // of processor time, so that a loaded machine does not count
constexpr long kMaxGrowthKiB = 16 * 1024 * kShare;  // of resident memory, inputs of 1 MiB and their copies included

struct Bomb {
  const char* name;
  std::string bytes;
  std::function<void(const std::string& path)> read;
};

double processor_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

long peak_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stol(line.substr(6));
  }
  return 0;
}

// What earlier bombs left to the allocator, and their peak, would hide what the next one takes.
long forget_peak() {
  ::malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5";
  return peak_kib();
}

std::string npy(const std::string& shape, const std::string& type = "<f4") {
  const std::string header = "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }\n";
  return "\x93NUMPY" + std::string("\x01\x00", 2) + u16(header.size()) + header + std::string(64, '\0');
}

std::string repeated(const std::string& text, std::size_t times) {
  std::string all;
  for (std::size_t i = 0; i < times; ++i) all += text;
  return all;
}

std::string safetensors(const std::string& header, std::uint64_t stated = 0) {
  return u64(stated ? stated : header.size()) + header + std::string(64, '\0');
}

std::vector<Bomb> bombs() {
  const auto array = [](const std::string& path) { read_npy(path); };
  const auto archive = [](const std::string& path) { read_tensor_file(path); };
  const auto plain = [](const std::string& path) { read_safetensors(path); };
  const auto config = [](const std::string& path) { load_config(path); };
  const auto manifest = [](const std::string& path) { PairIndex({}).add(path); };
  const auto model = [](const std::string& path) { Tokenizer tokenizer(path); };
  const std::string two_to_60 = "1152921504606846976";
  // [x, x] of [x, x] of ...: sixty levels are 2^60 leaves.
  std::string growth = "]q" + std::string(1, '\0');
  for (char level = 1; level < 60; ++level) {
    growth += "](h" + std::string(1, static_cast<char>(level - 1)) + "h" +
              std::string(1, static_cast<char>(level - 1)) + "eq" + std::string(1, level);
  }
  std::vector<ForgedEntry> many;
  for (int i = 0; i < 60'000; ++i) many.push_back({"a/" + std::to_string(i), ""});
  std::vector<ForgedEntry> long_entry{{"archive/data.pkl", pickle("}")}};
  long_entry[0].size = 0xFFFFFFF0;
  std::vector<ForgedEntry> zip64{{"archive/data.pkl", pickle("}")}};
  zip64[0].size = zip64[0].stored = 0xFFFFFFFF;
  zip64[0].central_extra = u16(1) + u16(16) + u64(~0ull >> 1) + u64(~0ull >> 1);
  return {
      {"npy: 2^60 elements", npy("(" + two_to_60 + ",)"), array},
      {"npy: a product that overflows to 64", npy("(4294967296, 4294967296, 16)"), array},
      {"npy: a negative dimension", npy("(-1,)"), array},
      {"npy: thousands of dimensions", npy("(" + repeated("1, ", 10'000) + ")"), array},
      {"npy: a number of 10,000 digits", npy("(" + std::string(10'000, '9') + ",)"), array},
      {"npy: a header of 4 GiB", "\x93NUMPY" + std::string("\x02\x00", 2) + u32(0xFFFFFFF0) + "{", array},
      {"npy: objects", npy("(1,)", "|O"), array},
      {"zip: 60,000 entries", forge_zip(many), archive},
      {"zip: an entry of 4 GiB", forge_zip(long_entry), archive},
      {"zip: an entry of 8 EiB", forge_zip(zip64), archive},
      {"pickle: a text of 2^62 bytes", forge_torch_file("\x80\x02\x8d" + u64(1ull << 62) + "."), archive},
      {"pickle: a number of 2 GiB", forge_torch_file("\x80\x02\x8b" + u32(0x7FFFFFFF) + "."), archive},
      {"pickle: a million marks", forge_torch_file("\x80\x02" + std::string(1'000'000, '(') + "."), archive},
      {"pickle: lists in lists",
       forge_torch_file("\x80\x02" + std::string(500'000, ']') + std::string(499'999, 'a') + "."), archive},
      {"pickle: tuples in tuples", forge_torch_file("\x80\x02N" + std::string(500'000, '\x85') + "."), archive},
      {"pickle: 2^60 leaves", forge_torch_file(pickle(growth)), archive},
      {"pickle: a tensor of 2^60 elements",
       forge_torch_file(pickle(tensor(storage("0", 1LL << 60), 0, {1LL << 60}, {1}))), archive},
      {"pickle: a tensor that repeats one element 2^40 times",
       forge_torch_file(pickle(tensor(storage("0", 16), 0, {1LL << 40}, {0}))), archive},
      {"safetensors: a header of 2^63 bytes", safetensors("{}", 1ull << 63), plain},
      {"safetensors: a shape that overflows",
       safetensors(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,16],"data_offsets":[0,64]}})"), plain},
      {"safetensors: deep JSON", safetensors(std::string(100'000, '[')), plain},
      {"config: a mebibyte of brackets", std::string(1 << 20, '['), config},
      {"config: a mebibyte of nested objects", repeated("{\"a\":", 200'000), config},
      {"config: a number of 100,000 digits", "{\"train\": {\"seed\": " + std::string(100'000, '9') + "}}", config},
      {"config: larger than a mebibyte", "{" + std::string(2 << 20, ' ') + "}", config},
      {"manifest: a line of a mebibyte", "{\"id\": \"" + std::string(1 << 20, 'a') + "\"}\n", manifest},
      {"manifest: deep JSON", std::string(60'000, '[') + "\n", manifest},
      {"manifest: a number of 60,000 digits",
       "{\"id\": \"a\", \"target_code_len\": " + std::string(60'000, '9') + "}\n", manifest},
      {"tokenizer: a piece of 200 KB",
       "\x0a" + std::string("\xc4\x9a\x0c\x0a\xc0\x9a\x0c", 7) + std::string(200'000, 'x'), model},
      {"tokenizer: a length of 2^63", "\x0a" + std::string(8, '\xff') + "\x7f", model},
      {"tokenizer: 17 MiB", std::string(17 << 20, '\0'), model},
  };
}

TEST(Bombs, AreRefusedAtOnce) {
  configure_logging({LogLevel::kError, false});
  const TemporaryFolder folder;
  std::int64_t tried = 0, missed = 0;
  for (const Bomb& bomb : bombs()) {
    SCOPED_TRACE(bomb.name);
    const std::string path = folder.write("bomb", bomb.bytes);
    const long peak = forget_peak();
    bool refused = true;
    double seconds = 1e9;  // the best of three: other programs spoil the caches
    for (int round = 0; round < 3 && seconds > kMaxSeconds; ++round) {
      const double begin = processor_seconds();
      try {
        bomb.read(path);
        refused = false;
      } catch (const Error&) {
      }
      seconds = std::min(seconds, processor_seconds() - begin);
    }
    const long growth = peak_kib() - peak;
    ++tried;
    missed += !refused || seconds > kMaxSeconds || growth > kMaxGrowthKiB;
    EXPECT_TRUE(refused);
    EXPECT_LE(seconds, kMaxSeconds);
    EXPECT_LE(growth, kMaxGrowthKiB);
  }
  configure_logging({LogLevel::kInfo, false});
  figure("allocation bombs (50 ms, 16 MiB)", tried, 0, missed);
}

}  // namespace
}  // namespace train_gpt_v2
