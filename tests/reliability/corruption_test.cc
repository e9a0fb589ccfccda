// Damaged checkpoints: noticed before use, or without any effect; and the run falls back to the one before.
#include <fcntl.h>
#include <unistd.h>

#include "store_test_support.h"
#include "train_gpt_v2/core/error.h"

namespace train_gpt_v2 {
namespace {

using testing::cases;
using testing::checkpoint_of;
using testing::figure;
using testing::job_of;
using testing::TemporaryFolder;

constexpr std::int64_t kFloats = 49'152;  // 200 KB
constexpr std::size_t kPage = 4096;

class Corruption : public ::testing::Test {
 protected:
  void SetUp() override {
    configure_logging({LogLevel::kError, false});
    path_ = folder_.file("model_step2.pth");
    write_torch_file(path_, checkpoint_of(2, kFloats));
    sound_ = read_file(path_, 1 << 20);
  }
  void TearDown() override { configure_logging({LogLevel::kInfo, false}); }

  // Writes `bytes` at `offset`; the file keeps its inode.
  void put(std::size_t offset, std::string_view bytes) const {
    const int fd = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    ASSERT_EQ(::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset)), static_cast<ssize_t>(bytes.size()));
    ::close(fd);
  }

  // 1 when the file is read and its content is not what was saved.
  std::int64_t undetected() const {
    try {
      return identical(read_tensor_file(path_).root, expected_) ? 0 : 1;
    } catch (const Error&) {
      return 0;
    }
  }

  TemporaryFolder folder_;
  std::string path_, sound_;
  Value expected_ = checkpoint_of(2, kFloats);
  RandomStream random_{20262, 3};
};

TEST_F(Corruption, BitFlips) {
  const std::int64_t tries = cases(10'000, 1500);
  std::int64_t missed = 0;
  for (std::int64_t i = 0; i < tries; ++i) {
    // Every other one where the structure is: the description at the beginning, the directory at the end.
    const std::uint64_t where = random_.below(4);
    const std::size_t at = where == 0   ? random_.below(2048)
                           : where == 1 ? sound_.size() - 1 - random_.below(2048)
                                        : random_.below(sound_.size());
    const char flipped = static_cast<char>(sound_[at] ^ (1 << random_.below(8)));
    put(at, {&flipped, 1});
    missed += undetected();
    ASSERT_EQ(missed, 0) << "byte " << at;
    put(at, {&sound_[at], 1});
  }
  figure("checkpoint: single bit flips", tries, 0, missed);
}

TEST_F(Corruption, Truncations) {
  const std::int64_t tries = cases(1000, 200);
  std::int64_t missed = 0;
  for (std::int64_t i = 0; i < tries; ++i) {
    const std::size_t size = i < 100 ? sound_.size() - 1 - static_cast<std::size_t>(i) : random_.below(sound_.size());
    folder_.write("model_step2.pth", std::string_view(sound_).substr(0, size));
    bool refused = false;
    try {
      read_tensor_file(path_);
    } catch (const Error&) {
      refused = true;
    }
    missed += !refused;
    ASSERT_TRUE(refused) << size << " bytes of " << sound_.size();
  }
  figure("checkpoint: truncations", tries, 0, missed);
}

TEST_F(Corruption, ZeroedAndSwappedPages) {
  const std::int64_t tries = cases(1000, 200);
  const std::size_t pages = sound_.size() / kPage;
  std::int64_t missed = 0;
  for (std::int64_t i = 0; i < tries; ++i) {
    const std::size_t page = random_.below(pages), other = random_.below(pages);
    const bool zero = i % 2 == 0;
    put(page * kPage, zero ? std::string(kPage, '\0') : sound_.substr(other * kPage, kPage));
    if (!zero) put(other * kPage, sound_.substr(page * kPage, kPage));
    missed += undetected();
    ASSERT_EQ(missed, 0) << "pages " << page << " " << other;
    put(page * kPage, sound_.substr(page * kPage, kPage));
    put(other * kPage, sound_.substr(other * kPage, kPage));
  }
  figure("checkpoint: zeroed and swapped pages", tries, 0, missed);
}

TEST_F(Corruption, FallsBackToTheNewestSoundOne) {
  write_torch_file(folder_.file("model_step1.pth"), checkpoint_of(1, kFloats));
  const std::int64_t tries = cases(200, 40);
  std::int64_t lost = 0;
  for (std::int64_t i = 0; i < tries; ++i) {
    const std::size_t at = random_.below(sound_.size());
    const char flipped = static_cast<char>(sound_[at] ^ (1 << random_.below(8)));
    put(at, {&flipped, 1});
    const auto found = find_newest_checkpoint(folder_.path());
    const bool sound = found && identical(found->file.root, checkpoint_of(found->step, kFloats));
    lost += !sound;
    ASSERT_TRUE(sound) << "byte " << at;
    put(at, {&sound_[at], 1});
  }
  figure("checkpoint: fall back from a damaged one", tries, lost, 0);
}

}  // namespace
}  // namespace train_gpt_v2
