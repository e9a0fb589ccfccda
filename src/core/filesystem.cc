#include "train_gpt_v2/core/filesystem.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "open_regular.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {

namespace fs = std::filesystem;

int FileOps::open(const std::string& path, int flags, mode_t mode) {
  return ::open(path.c_str(), flags, mode);
}
ssize_t FileOps::write(int fd, const void* data, std::size_t size) {
  return ::write(fd, data, size);
}
ssize_t FileOps::pwrite(int fd, const void* data, std::size_t size, off_t offset) {
  return ::pwrite(fd, data, size, offset);
}
int FileOps::allocate(int fd, off_t size) {
  return ::posix_fallocate(fd, 0, size);
}
int FileOps::truncate(int fd, off_t size) {
  return ::ftruncate(fd, size);
}
int FileOps::fsync(int fd) {
  return ::fsync(fd);
}
int FileOps::close(int fd) {
  return ::close(fd);
}
int FileOps::rename(const std::string& from, const std::string& to) {
  return ::rename(from.c_str(), to.c_str());
}
int FileOps::link(const std::string& from, const std::string& to) {
  return ::link(from.c_str(), to.c_str());
}
int FileOps::symlink(const std::string& target, const std::string& path) {
  return ::symlink(target.c_str(), path.c_str());
}
int FileOps::unlink(const std::string& path) {
  return ::unlink(path.c_str());
}
int FileOps::mkdir(const std::string& path, mode_t mode) {
  return ::mkdir(path.c_str(), mode);
}

namespace {

FileOps posix_ops;
std::atomic<FileOps*> current_ops{&posix_ops};

[[noreturn]] void refuse(const char* doing, const std::string& path, int error) {
  const bool creating =
      error == EACCES || error == EROFS || error == EPERM || error == ENOTDIR || error == ENOENT || error == EISDIR;
  Error failure(creating ? "IO003" : "IO002", concat("cannot ", doing, ": ", std::strerror(error)));
  std::move(failure).where(path);
  if (error == ENOSPC || error == EDQUOT) {
    std::move(failure).detail(concat("free on this file system: ", human_bytes(free_space(parent_path(path)))));
    std::move(failure).fix("free space, then run the same command again");
  } else if (creating) {
    std::move(failure).fix("check the folder and its permissions, or choose another --output-dir");
  }
  throw failure;
}

}  // namespace

FileOps& file_ops() {
  return *current_ops.load(std::memory_order_acquire);
}

ScopedFileOps::ScopedFileOps(FileOps& ops) {
  current_ops.store(&ops, std::memory_order_release);
}
ScopedFileOps::~ScopedFileOps() {
  current_ops.store(&posix_ops, std::memory_order_release);
}

// --- AtomicFile
// -------------------------------------------------------------------------------------------------------

AtomicFile::AtomicFile(std::string path, std::uint64_t reserve) : path_(std::move(path)) {
  static std::atomic<unsigned> serial{0};
  temporary_ = concat(path_, ".tmp.", ::getpid(), ".", serial.fetch_add(1));
  const int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
  fd_ = file_ops().open(temporary_, flags, 0644);
  // A process with our number that was killed left it: in a container every start has the same number.
  if (fd_ < 0 && errno == EEXIST && file_ops().unlink(temporary_) == 0) fd_ = file_ops().open(temporary_, flags, 0644);
  if (fd_ < 0) refuse("create the file", temporary_, errno);
  if (reserve > 0) {
    const int error = file_ops().allocate(fd_, static_cast<off_t>(reserve));
    // Some file systems cannot reserve; then the write itself tells.
    if (error == ENOSPC || error == EDQUOT || error == EIO) {
      file_ops().close(fd_);
      file_ops().unlink(temporary_);
      fd_ = -1;
      refuse("reserve space for the file", path_, error);
    }
    reserved_ = error == 0;
  }
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) file_ops().close(fd_);
  if (!temporary_.empty()) file_ops().unlink(temporary_);
}

void AtomicFile::write(const void* data, std::size_t size) {
  TGV2_CHECK(fd_ >= 0);
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = file_ops().write(fd_, at, std::min<std::size_t>(size, std::size_t{1} << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) refuse("write", path_, written == 0 ? ENOSPC : errno);
    at += written;
    size -= static_cast<std::size_t>(written);
    size_ += static_cast<std::uint64_t>(written);
  }
}

void AtomicFile::commit() {
  TGV2_CHECK(fd_ >= 0);
  if (reserved_ && file_ops().truncate(fd_, static_cast<off_t>(size_)) != 0) refuse("set the size of", path_, errno);
  if (file_ops().fsync(fd_) != 0) refuse("sync", path_, errno);
  const int fd = std::exchange(fd_, -1);
  if (file_ops().close(fd) != 0) refuse("close", path_, errno);
  if (file_ops().rename(temporary_, path_) != 0) refuse("rename into place", path_, errno);
  temporary_.clear();
  sync_directory(parent_path(path_));
}

void write_file_atomically(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

void move_file(const std::string& from, const std::string& to) {
  if (file_exists(to) || directory_exists(to)) refuse("move a file to", to, EEXIST);
  if (file_ops().rename(from, to) != 0) refuse("move a file to", to, errno);
}

void publish_link(const std::string& target, const std::string& name) {
  struct stat a {
  }, b{};
  if (::stat(target.c_str(), &a) != 0) refuse("find", target, errno);
  if (::stat(name.c_str(), &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino) return;
  const std::string temporary = concat(name, ".tmp.", ::getpid());
  file_ops().unlink(temporary);
  if (file_ops().link(target, temporary) != 0 && file_ops().symlink(file_name(target), temporary) != 0) {
    refuse("link", name, errno);
  }
  if (file_ops().rename(temporary, name) != 0) {
    const int error = errno;
    file_ops().unlink(temporary);
    refuse("rename into place", name, error);
  }
  sync_directory(parent_path(name));
}

// --- reading
// ----------------------------------------------------------------------------------------------------------

// Opens a regular file read-only; FIFOs and devices are refused before they can block.
int open_regular(const std::string& path, std::uint64_t max_bytes, std::size_t& size) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) {
    const int error = errno;
    const bool missing = error == ENOENT || error == ENOTDIR;
    throw Error(missing ? "IO001" : "IO002", concat(missing ? "no such file" : std::strerror(error))).where(path);
  }
  struct stat info {};
  const bool known = ::fstat(fd, &info) == 0;
  if (!known || !S_ISREG(info.st_mode)) {
    ::close(fd);
    throw Error("IO004", "not a regular file").where(path);
  }
  if (static_cast<std::uint64_t>(info.st_size) > max_bytes) {
    ::close(fd);
    throw Error("IO004",
                concat("the file is larger than allowed: ", human_bytes(static_cast<std::uint64_t>(info.st_size)),
                       ", the limit is ", human_bytes(max_bytes)))
        .where(path);
  }
  size = static_cast<std::size_t>(info.st_size);
  return fd;
}

std::string read_file(const std::string& path, std::uint64_t max_bytes) {
  std::size_t size = 0;
  const int fd = open_regular(path, max_bytes, size);
  std::string content(size, '\0');
  std::size_t filled = 0;
  while (filled < size) {
    const ssize_t got = ::read(fd, content.data() + filled, size - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const int error = errno;
      ::close(fd);
      throw Error("IO002", concat("cannot read: ", std::strerror(error))).where(path);
    }
    if (got == 0) break;
    filled += static_cast<std::size_t>(got);
  }
  ::close(fd);
  content.resize(filled);
  return content;
}

bool file_exists(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

bool directory_exists(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

std::uint64_t file_size(const std::string& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  if (error == std::errc::no_such_file_or_directory) throw Error("IO001", "no such file").where(path);
  if (error) throw Error("IO004", concat("not a regular file: ", error.message())).where(path);
  return size;
}

// --- folders
// ----------------------------------------------------------------------------------------------------------

void make_directories(const std::string& path) {
  if (path.empty() || directory_exists(path)) return;
  const std::string parent = parent_path(path);
  if (parent != path) make_directories(parent);
  if (file_ops().mkdir(path, 0755) != 0 && !(errno == EEXIST && directory_exists(path))) {
    throw Error("IO003", concat("cannot create the folder: ", std::strerror(errno)))
        .where(path)
        .fix("choose a writable place, or create the folder yourself");
  }
}

void remove_file(const std::string& path) {
  if (file_ops().unlink(path) != 0 && errno != ENOENT) refuse("remove", path, errno);
}

void sync_directory(const std::string& path) {
  const int fd = file_ops().open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (fd < 0) refuse("open the folder", path, errno);
  const int result = file_ops().fsync(fd);
  const int error = errno;
  file_ops().close(fd);
  if (result != 0 && error != EINVAL) refuse("sync the folder", path, error);  // EINVAL: a file system without it
}

std::uint64_t free_space(const std::string& path) {
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0) return 0;
  return static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
}

std::vector<std::string> list_directory(const std::string& path) {
  std::vector<std::string> names;
  DIR* folder = ::opendir(path.c_str());
  if (!folder) throw Error("IO001", concat("cannot list the folder: ", std::strerror(errno))).where(path);
  while (const dirent* entry = ::readdir(folder)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  ::closedir(folder);
  std::sort(names.begin(), names.end());
  return names;
}

std::string path_join(std::string_view folder, std::string_view path) {
  return (fs::path(folder) / fs::path(path)).lexically_normal().string();
}

std::string parent_path(std::string_view path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

std::string file_name(std::string_view path) {
  return fs::path(path).filename().string();
}

std::string absolute_path(std::string_view path) {
  std::string absolute = fs::absolute(fs::path(path)).lexically_normal().string();
  if (absolute.size() > 1 && absolute.back() == '/') absolute.pop_back();  // a normalised path has one at most
  return absolute;
}

// --- RunLock
// ----------------------------------------------------------------------------------------------------------

RunLock::RunLock(const std::string& directory) : path_(path_join(directory, ".lock")) {
  struct stat locked {
  }, named{};
  do {
    if (fd_ >= 0) ::close(fd_);
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd_ < 0) refuse("create the lock file", path_, errno);
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      char holder[32] = {};
      const ssize_t got = ::pread(fd_, holder, sizeof holder - 1, 0);
      ::close(fd_);
      throw Error("IO005", "another process is training in this run directory")
          .where(directory)
          .detail(concat("held by process ", got > 0 ? std::string(trim(holder)) : "?"))
          .fix("wait for it, stop it, or give this run another --output-dir");
    }
    // The holder before us may have removed the file between our open and our flock: then the name is another file now.
  } while (::fstat(fd_, &locked) != 0 || ::stat(path_.c_str(), &named) != 0 || locked.st_ino != named.st_ino);
  const std::string id = std::to_string(::getpid()) + "\n";
  // The id is for people only; the lock itself is the flock.
  if (::ftruncate(fd_, 0) != 0 || ::pwrite(fd_, id.data(), id.size(), 0) < 0) refuse("write", path_, errno);
}

RunLock::~RunLock() {
  ::unlink(path_.c_str());
  ::close(fd_);
}

}  // namespace train_gpt_v2
