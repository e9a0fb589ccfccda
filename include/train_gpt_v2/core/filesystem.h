#pragma once
// Every file operation that must survive a crash goes through here.
//
// FileOps is the seam (LevelDB's Env): tests swap it for one that fails or dies at the k-th call, or drops what was
// not synced. AtomicFile publishes a file whole or not at all: temporary name in the same folder, write, fsync, rename,
// fsync of the folder. Nothing here follows a name found inside a data file.
//
// Errors: Error IO001 (missing), IO002 (the system refused), IO003 (cannot create), IO004 (too large, not a regular
// file), IO005 (locked). Threads: FileOps implementations are thread-safe; the other classes belong to one thread.

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace train_gpt_v2 {

// The system calls that change files. Each returns what the call returns and leaves errno set on failure.
class FileOps {
 public:
  virtual ~FileOps() = default;
  virtual int open(const std::string& path, int flags, mode_t mode);
  virtual ssize_t write(int fd, const void* data, std::size_t size);
  virtual ssize_t pwrite(int fd, const void* data, std::size_t size, off_t offset);
  virtual int allocate(int fd, off_t size);  // posix_fallocate; 0 or an errno value
  virtual int truncate(int fd, off_t size);
  virtual int fsync(int fd);
  virtual int close(int fd);
  virtual int rename(const std::string& from, const std::string& to);
  virtual int link(const std::string& from, const std::string& to);
  virtual int symlink(const std::string& target, const std::string& path);
  virtual int unlink(const std::string& path);
  virtual int mkdir(const std::string& path, mode_t mode);
};

// The one in use; the POSIX calls unless a ScopedFileOps is alive.
FileOps& file_ops();

// Installs another FileOps for the life of this object (tests). Not nested, not while other threads write.
class ScopedFileOps {
 public:
  explicit ScopedFileOps(FileOps& ops);
  ~ScopedFileOps();
  ScopedFileOps(const ScopedFileOps&) = delete;
  ScopedFileOps& operator=(const ScopedFileOps&) = delete;
};

// A file that appears under its name only when commit() returns. Destroyed uncommitted, it leaves nothing behind.
// After any failure the object is dead: an fsync is never retried (the kernel may have dropped the pages).
class AtomicFile {
 public:
  // `reserve` > 0 asks the system for that much space first, so that a full disk is noticed before writing.
  explicit AtomicFile(std::string path, std::uint64_t reserve = 0);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t size);
  void write(std::string_view text) { write(text.data(), text.size()); }
  std::uint64_t size() const { return size_; }
  // fsync, rename over `path`, fsync of the folder.
  void commit();

 private:
  std::string path_;
  std::string temporary_;
  int fd_ = -1;
  std::uint64_t size_ = 0;
  bool reserved_ = false;
};

void write_file_atomically(const std::string& path, std::string_view content);

// Points `name` at `target` (same folder) atomically: hard link, or a relative symbolic link where there are none.
// Does nothing when both already are the same file.
void publish_link(const std::string& target, const std::string& name);
// A new name within the same file system. IO002 when it is taken already, or on failure.
void move_file(const std::string& from, const std::string& to);

// A read-only view of a whole regular file, mapped. Empty files have an empty view. What happens to a file that shrinks
// in place: core/lost_pages.h.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path, std::uint64_t max_bytes = UINT64_MAX);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// The whole content of a regular file of at most max_bytes.
std::string read_file(const std::string& path, std::uint64_t max_bytes);

bool file_exists(const std::string& path);  // regular file, after symbolic links
bool directory_exists(const std::string& path);
std::uint64_t file_size(const std::string& path);
void make_directories(const std::string& path);  // like mkdir -p
void remove_file(const std::string& path);       // no error when it is not there
void sync_directory(const std::string& path);
std::uint64_t free_space(const std::string& path);                 // bytes an ordinary user may still write there
std::vector<std::string> list_directory(const std::string& path);  // names, sorted, without . and ..

// Lexical path work; nothing is looked up on disk.
std::string path_join(std::string_view folder, std::string_view path);  // an absolute `path` wins
std::string parent_path(std::string_view path);                         // "." when there is none
std::string file_name(std::string_view path);
std::string absolute_path(std::string_view path);  // normalised, without a slash at its end

// Keeps a second process out of a run directory. The lock dies with the process, so a stale one cannot block.
class RunLock {
 public:
  explicit RunLock(const std::string& directory);  // IO005 naming the holder's process id
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace train_gpt_v2
