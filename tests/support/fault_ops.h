#pragma once
// File systems that go wrong (core/filesystem.h: FileOps): failing or dying at the k-th call, and losing power.

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "train_gpt_v2/core/filesystem.h"
#include "train_gpt_v2/core/random.h"

namespace train_gpt_v2::testing {

// Counts every call; the `k`-th (from 0) and, with `stays`, all later ones do `what` instead.
class FaultyOps : public FileOps {
 public:
  enum class Fault { kNone, kError, kShortWrite, kKill };
  FaultyOps(Fault fault, std::int64_t k, int error = EIO, bool stays = false)
      : fault_(fault), k_(k), error_(error), stays_(stays) {}

  std::int64_t calls() const { return calls_; }
  bool struck() const { return struck_; }

  int open(const std::string& path, int flags, mode_t mode) override {
    return strikes() ? fail() : FileOps::open(path, flags, mode);
  }
  ssize_t write(int fd, const void* data, std::size_t size) override {
    if (!strikes(true)) return FileOps::write(fd, data, size);
    // Half of it arrives; a caller that believes more loses data.
    if (fault_ == Fault::kShortWrite) return FileOps::write(fd, data, (size + 1) / 2);
    return fail();
  }
  ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset) override {
    if (!strikes(true)) return FileOps::pwrite(fd, data, size, offset);
    if (fault_ == Fault::kShortWrite) return FileOps::pwrite(fd, data, (size + 1) / 2, offset);
    return fail();
  }
  int allocate(int fd, off_t size) override {
    if (!strikes()) return FileOps::allocate(fd, size);
    return fail() < 0 ? error_ : 0;
  }
  int truncate(int fd, off_t size) override { return strikes() ? fail() : FileOps::truncate(fd, size); }
  int fsync(int fd) override { return strikes() ? fail() : FileOps::fsync(fd); }
  int close(int fd) override {
    const bool now = strikes();
    const int result = FileOps::close(fd);  // Linux frees the descriptor even where close fails
    return now ? fail() : result;
  }
  int rename(const std::string& from, const std::string& to) override {
    return strikes() ? fail() : FileOps::rename(from, to);
  }
  int link(const std::string& from, const std::string& to) override {
    return strikes() ? fail() : FileOps::link(from, to);
  }
  int symlink(const std::string& target, const std::string& path) override {
    return strikes() ? fail() : FileOps::symlink(target, path);
  }
  int unlink(const std::string& path) override { return strikes() ? fail() : FileOps::unlink(path); }
  int mkdir(const std::string& path, mode_t mode) override { return strikes() ? fail() : FileOps::mkdir(path, mode); }

 private:
  bool strikes(bool writing = false) {
    const std::int64_t call = calls_++;
    const bool now = fault_ != Fault::kNone && (stays_ ? call >= k_ : call == k_);
    if (now && fault_ == Fault::kKill) ::raise(SIGKILL);
    struck_ = struck_ || now;
    return now && (writing || fault_ != Fault::kShortWrite);  // only writes can be short
  }
  int fail() {
    errno = error_;
    return -1;
  }

  Fault fault_;
  std::int64_t k_;
  int error_;
  bool stays_;
  std::atomic<std::int64_t> calls_{0};
  std::atomic<bool> struck_{false};
};

// Does everything and remembers it, so that the state of the disk after a power loss at any moment can be made:
// what was synced is there; of the rest, any subset (ALICE, OSDI'14: writes and names reorder freely until synced).
class PowerLossOps : public FileOps {
 public:
  explicit PowerLossOps(std::string folder) : folder_(std::move(folder)) {}

  std::size_t operations() const { return log_.size(); }

  int open(const std::string& path, int flags, mode_t mode) override {
    const int fd = FileOps::open(path, flags, mode);
    if (fd < 0) return fd;
    const std::lock_guard lock(mutex_);
    if (flags & O_DIRECTORY) {
      descriptors_[fd] = {kFolder, 0};
    } else if (flags & O_CREAT) {
      names_[path] = inodes_;
      log_.push_back({Kind::kName, inodes_, path, {}, 0});
      descriptors_[fd] = {inodes_++, 0};
    }
    return fd;
  }
  ssize_t write(int fd, const void* data, std::size_t size) override {
    const ssize_t written = FileOps::write(fd, data, size);
    const std::lock_guard lock(mutex_);
    const auto known = descriptors_.find(fd);
    if (written > 0 && known != descriptors_.end()) {
      log_.push_back({Kind::kWrite, known->second.inode, "",
                      std::string(static_cast<const char*>(data), static_cast<std::size_t>(written)),
                      known->second.offset});
      known->second.offset += static_cast<std::uint64_t>(written);
    }
    return written;
  }
  int truncate(int fd, off_t size) override {
    const int result = FileOps::truncate(fd, size);
    const std::lock_guard lock(mutex_);
    if (const auto known = descriptors_.find(fd); result == 0 && known != descriptors_.end()) {
      log_.push_back({Kind::kTruncate, known->second.inode, "", {}, static_cast<std::uint64_t>(size)});
    }
    return result;
  }
  int allocate(int fd, off_t size) override {
    const int result = FileOps::allocate(fd, size);
    const std::lock_guard lock(mutex_);
    if (const auto known = descriptors_.find(fd); result == 0 && known != descriptors_.end()) {
      log_.push_back({Kind::kTruncate, known->second.inode, "", {}, static_cast<std::uint64_t>(size)});
    }
    return result;
  }
  int fsync(int fd) override {
    const int result = FileOps::fsync(fd);
    const std::lock_guard lock(mutex_);
    if (const auto known = descriptors_.find(fd); result == 0 && known != descriptors_.end()) {
      log_.push_back({Kind::kSync, known->second.inode, "", {}, 0});
    }
    return result;
  }
  int close(int fd) override {
    const std::lock_guard lock(mutex_);
    descriptors_.erase(fd);
    return FileOps::close(fd);
  }
  int rename(const std::string& from, const std::string& to) override {
    const int result = FileOps::rename(from, to);
    const std::lock_guard lock(mutex_);
    if (result == 0) {
      log_.push_back({Kind::kRename, names_[from], to, from, 0});
      names_[to] = names_[from];
      names_.erase(from);
    }
    return result;
  }
  int link(const std::string& from, const std::string& to) override {
    const int result = FileOps::link(from, to);
    const std::lock_guard lock(mutex_);
    if (result == 0) {
      names_[to] = names_[from];
      log_.push_back({Kind::kName, names_[from], to, {}, 0});
    }
    return result;
  }
  int unlink(const std::string& path) override {
    const int result = FileOps::unlink(path);
    const std::lock_guard lock(mutex_);
    if (result == 0) {
      names_.erase(path);
      log_.push_back({Kind::kUnlink, 0, path, {}, 0});
    }
    return result;
  }

  // The folder as it may be found after power was lost behind the first `prefix` operations; `random` chooses what of
  // the unsynced survives (none, all, or each with a half). Written into `target`.
  void crash(std::size_t prefix, RandomStream& random, const std::string& target) const {
    const std::uint64_t mode = random.below(4);  // 0: nothing unsynced survives, 1: all, 2 and 3: some
    const auto survives = [&] { return mode == 1 || (mode >= 2 && random.below(2) == 1); };
    std::map<int, std::size_t> synced;  // inode -> position of its last fsync
    std::size_t names_synced = 0;
    for (std::size_t i = 0; i < prefix; ++i) {
      if (log_[i].kind != Kind::kSync) continue;
      if (log_[i].inode == kFolder) {
        names_synced = i;
      } else {
        synced[log_[i].inode] = i;
      }
    }
    std::map<int, std::string> content;
    std::map<std::string, int> names;
    for (std::size_t i = 0; i < prefix; ++i) {
      const Operation& one = log_[i];
      if (one.kind == Kind::kWrite || one.kind == Kind::kTruncate) {
        const auto sync = synced.find(one.inode);
        if (!(sync != synced.end() && i < sync->second) && !survives()) continue;
        std::string& bytes = content[one.inode];
        if (one.kind == Kind::kTruncate) {
          bytes.resize(one.offset);
        } else {
          if (bytes.size() < one.offset + one.data.size()) bytes.resize(one.offset + one.data.size());
          bytes.replace(one.offset, one.data.size(), one.data);
        }
        continue;
      }
      if (one.kind == Kind::kSync || (i >= names_synced && !survives())) continue;
      if (one.kind == Kind::kUnlink) {
        names.erase(one.path);
      } else {
        if (one.kind == Kind::kRename) names.erase(one.data);
        names[one.path] = one.inode;
      }
    }
    for (const auto& [path, inode] : names) {
      const int fd = ::open((target + path.substr(folder_.size())).c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      const std::string& bytes = content[inode];
      if (fd < 0 || ::write(fd, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) std::abort();
      ::close(fd);
    }
  }

 private:
  static constexpr int kFolder = -1;
  enum class Kind { kName, kRename, kUnlink, kWrite, kTruncate, kSync };
  struct Operation {
    Kind kind;
    int inode;
    std::string path;
    std::string data;      // written bytes; of a rename: the old name
    std::uint64_t offset;  // of a write; the size of a truncation
  };
  struct Descriptor {
    int inode;
    std::uint64_t offset;
  };

  std::string folder_;
  mutable std::mutex mutex_;
  std::vector<Operation> log_;
  std::map<int, Descriptor> descriptors_;
  std::map<std::string, int> names_;
  int inodes_ = 0;
};

}  // namespace train_gpt_v2::testing
