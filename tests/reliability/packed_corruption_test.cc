// Damaged packed sets: noticed before a sample is used, or without effect on any sample.
#include <fcntl.h>
#include <unistd.h>

#include "store_test_support.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/data/packer.h"
#include "unit/data/data_test_support.h"

namespace train_gpt_v2 {
namespace {

using testing::cases;
using testing::figure;
using testing::TemporaryFolder;

// Every sample, read as training reads it.
Batch all_samples(const std::string& set) {
  const Dataset dataset({set}, {}, {}, testing::tiny_model());
  Batch batch;
  for (std::uint32_t i = 0; i < dataset.size(); ++i) dataset.load(i, batch);
  return batch;
}

class PackedCorruption : public ::testing::Test {
 protected:
  void SetUp() override {
    configure_logging({LogLevel::kError, false});
    std::vector<testing::PairLengths> pairs;
    for (int i = 0; i < 12; ++i) pairs.push_back({3 + i % 5, 4 + i, i % 2 ? "a" : "b"});
    testing::write_arrays(folder_, pairs);
    PackRequest request;
    request.manifests = {testing::write_manifest(folder_, "pairs.jsonl", pairs)};
    request.output = set_;
    pack_manifests(request);
    expected_ = all_samples(set_);
    for (const std::string& name : list_directory(set_)) {
      files_.push_back(path_join(set_, name));
      sound_.push_back(read_file(files_.back(), 1 << 24));
      total_ += sound_.back().size();
    }
  }
  void TearDown() override { configure_logging({LogLevel::kInfo, false}); }

  // 1 when all samples can be read and one is not what was packed.
  std::int64_t undetected() const {
    try {
      const Batch found = all_samples(set_);
      const bool same = found.ids == expected_.ids && found.text == expected_.text && found.codes == expected_.codes &&
                        found.condition == expected_.condition && found.emo_vec == expected_.emo_vec;
      return same ? 0 : 1;
    } catch (const Error&) {
      return 0;
    }
  }

  // A file with chance by size, and a byte of it.
  std::pair<std::size_t, std::size_t> somewhere() {
    std::size_t at = random_.below(total_), file = 0;
    while (at >= sound_[file].size()) at -= sound_[file++].size();
    return {file, at};
  }

  void put(std::size_t file, std::size_t at, std::string_view bytes) const {
    const int fd = ::open(files_[file].c_str(), O_WRONLY | O_CLOEXEC);
    ASSERT_EQ(::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(at)), static_cast<ssize_t>(bytes.size()));
    ::close(fd);
  }

  TemporaryFolder folder_;
  const std::string set_ = folder_.file("set");
  std::vector<std::string> files_, sound_;
  std::size_t total_ = 0;
  Batch expected_;
  RandomStream random_{20263, 5};
};

TEST_F(PackedCorruption, BitFlips) {
  const std::int64_t tries = cases(10'000, 300);
  std::int64_t missed = 0;
  for (std::int64_t i = 0; i < tries; ++i) {
    const auto [file, at] = somewhere();
    const char flipped = static_cast<char>(sound_[file][at] ^ (1 << random_.below(8)));
    put(file, at, {&flipped, 1});
    missed += undetected();
    ASSERT_EQ(missed, 0) << files_[file] << " byte " << at;
    put(file, at, {&sound_[file][at], 1});
  }
  figure("packed set: single bit flips", tries, 0, missed);
}

TEST_F(PackedCorruption, TruncationsAndZeroedPages) {
  const std::int64_t tries = cases(1000, 100);
  std::int64_t missed = 0;
  for (std::int64_t i = 0; i < tries; ++i) {
    const auto [file, at] = somewhere();
    const std::string& sound = sound_[file];
    std::string damaged = sound.substr(0, at);
    if (i % 2 == 0) {  // a page of zeros instead of what was there
      damaged += std::string(std::min<std::size_t>(512, sound.size() - at), '\0');
      damaged += sound.substr(damaged.size());
    }
    std::ofstream(files_[file], std::ios::binary) << damaged;
    missed += undetected();
    ASSERT_EQ(missed, 0) << files_[file] << " at " << at;
    std::ofstream(files_[file], std::ios::binary) << sound;
  }
  figure("packed set: truncations and zeroed pages", tries, 0, missed);
}

}  // namespace
}  // namespace train_gpt_v2
