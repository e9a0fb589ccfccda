// Fuzzing with any compiler: replays the seeds of every target, then mutates them for a while. No coverage guides it;
// it is the smoke test beside libfuzzer_main.cc. usage: fuzz_smoke CORPUS SECONDS [TARGET...]
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "fuzz_targets.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/logging.h"
#include "train_gpt_v2/core/random.h"

namespace train_gpt_v2::fuzz {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMaxInput = 1 << 16;
constexpr double kSlow = 2;  // seconds one input may take (a loaded machine with sanitizers)
constexpr long kMaxMemoryKiB = 1024 * 1024;

// Numbers at which readers go wrong, in the widths that formats use.
constexpr std::uint64_t kInteresting[] = {
    0,     1,          0x7F,       0x80, 0xFF,   0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF,
    ~0ull, 1ull << 40, 1ull << 60, 4096, 0x10000};

std::string mutate(const std::vector<std::string>& seeds, RandomStream& random) {
  std::string bytes = seeds[random.below(seeds.size())];
  const std::uint64_t changes = 1 + random.below(6);
  for (std::uint64_t i = 0; i < changes; ++i) {
    const std::size_t at = random.below(bytes.size() + 1);
    const std::size_t length =
        std::min<std::size_t>(1 + random.below(random.below(8) == 0 ? 256 : 8), bytes.size() - at);
    switch (random.below(8)) {
      case 0:
        if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
        break;
      case 1:
        if (at < bytes.size()) bytes[at] = static_cast<char>(random.below(256));
        break;
      case 2:
        bytes.erase(at, length);
        break;
      case 3:
        bytes.insert(at, 1 + random.below(4), static_cast<char>(random.below(256)));
        break;
      case 4:
        bytes.insert(at, bytes.substr(random.below(bytes.size() + 1), length));
        break;
      case 5:
        bytes.resize(at);
        break;
      case 6: {
        const std::uint64_t number = kInteresting[random.below(std::size(kInteresting))];
        const std::size_t width = std::min<std::size_t>(std::size_t{1} << random.below(4), bytes.size() - at);
        bytes.replace(at, width, reinterpret_cast<const char*>(&number), width);
        break;
      }
      default: {  // part of another seed
        const std::string& other = seeds[random.below(seeds.size())];
        const std::size_t from = random.below(other.size() + 1);
        bytes.replace(at, length, other.substr(from, random.below(64)));
      }
    }
  }
  if (bytes.size() > kMaxInput) bytes.resize(kMaxInput);
  return bytes;
}

// False when the input took too long; throws what is not an Error.
bool run_one(const Target& target, const std::string& input) {
  const auto begin = Clock::now();
  try {
    target.run({reinterpret_cast<const std::uint8_t*>(input.data()), input.size()});
  } catch (const Error&) {
  }
  return std::chrono::duration<double>(Clock::now() - begin).count() < kSlow;
}

int fuzz(const Target& target, const std::string& corpus, double seconds, const std::string& last_input) {
  std::vector<std::string> seeds;
  const std::string folder = path_join(corpus, target.name);
  for (const std::string& name : list_directory(folder)) seeds.push_back(read_file(path_join(folder, name), 1 << 20));
  if (seeds.empty()) {
    std::cerr << "no seeds in " << folder << "\n";
    return 1;
  }
  RandomStream random(static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count()), 1);
  const auto begin = Clock::now();
  std::int64_t runs = 0;
  while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds) {
    const auto i = static_cast<std::size_t>(runs);
    const std::string input = i < seeds.size() ? seeds[i] : mutate(seeds, random);
    std::string reason;
    try {
      if (!run_one(target, input)) reason = "took too long";
    } catch (const std::exception& failure) {
      reason = failure.what();
    }
    rusage usage{};
    if (runs % 256 == 0 && ::getrusage(RUSAGE_SELF, &usage) == 0 && usage.ru_maxrss > kMaxMemoryKiB)
      reason = "much memory";
    if (!reason.empty()) {
      write_file_atomically(last_input, input);
      std::cerr << target.name << ": FINDING: " << reason << "; the input is in " << last_input << "\n";
      return 1;
    }
    ++runs;
  }
  std::cout << "FIGURE\tfuzz (mutations): " << target.name << "\t" << runs << "\t0\t0" << std::endl;
  return 0;
}

}  // namespace
}  // namespace train_gpt_v2::fuzz

int main(int argc, char** argv) {
  using namespace train_gpt_v2;
  if (argc < 3) {
    std::cerr << "usage: " << argv[0] << " CORPUS SECONDS [TARGET...]\n";
    return 64;
  }
  configure_logging({LogLevel::kError, false});
  std::vector<fuzz::Target> chosen;
  for (int i = 3; i < argc; ++i) {
    const fuzz::Target* target = fuzz::find_target(argv[i]);
    if (!target) {
      std::cerr << "no target is called " << argv[i] << "\n";
      return 64;
    }
    chosen.push_back(*target);
  }
  if (chosen.empty()) chosen.assign(fuzz::targets().begin(), fuzz::targets().end());
  const double each = std::strtod(argv[2], nullptr) / static_cast<double>(chosen.size());
  int findings = 0;
  for (const fuzz::Target& target : chosen)
    findings += fuzz::fuzz(target, argv[1], each, std::string(target.name) + ".finding");
  return findings > 0 ? 1 : 0;
}
