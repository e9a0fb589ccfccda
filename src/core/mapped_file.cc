#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "open_regular.h"
#include "train_gpt_v2/core/error.h"
#include "train_gpt_v2/core/lost_pages.h"
#include "train_gpt_v2/core/text.h"

namespace train_gpt_v2 {

namespace {

// What the signal handler must know of a mapping. Ranges form a list that only grows and are used again, so the handler
// walks it without a lock; `begin` is set last and cleared first.
struct MappedRange {
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};
  std::atomic<bool> mark{false}, lost{false}, used{false};
  std::atomic<const char*> path{nullptr};
  std::atomic<dev_t> device{0};
  std::atomic<ino_t> inode{0};
  MappedRange* next = nullptr;
};

std::atomic<MappedRange*> ranges{nullptr};
struct sigaction previous_action {};

void say(const char* text) {
  if (::write(STDERR_FILENO, text, std::strlen(text)) < 0) return;
}

void on_bus_error(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (MappedRange* range = ranges.load(); range; range = range->next) {
    const std::uintptr_t begin = range->begin.load();
    if (begin == 0 || address < begin || address >= range->end.load()) continue;
    range->lost = true;
    if (range->mark) {
      const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
      void* at = reinterpret_cast<void*>(address & ~(page - 1));
      if (::mmap(at, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) return;
    }
    say("error[IO008]: a file was cut short while it was being read\n  --> ");
    say(range->path.load());
    say("\n  fix: restore the file, then run the same command again\n");
    ::_exit(static_cast<int>(ExitStatus::kIo));
  }
  ::sigaction(SIGBUS, &previous_action, nullptr);  // not ours: it strikes again, and the one before us sees it
}

void install_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &previous_action);
  });
}

MappedRange* claim_range() {
  for (MappedRange* range = ranges.load(); range; range = range->next) {
    if (!range->used.exchange(true)) return range;
  }
  auto* range = new MappedRange;  // never freed: the handler may be walking the list
  range->used = true;
  range->next = ranges.load();
  while (!ranges.compare_exchange_weak(range->next, range)) {
  }
  return range;
}

MappedRange* range_at(const std::byte* begin) {
  for (MappedRange* range = ranges.load(); range; range = range->next) {
    if (begin && range->begin.load() == reinterpret_cast<std::uintptr_t>(begin)) return range;
  }
  return nullptr;  // an empty file
}

[[noreturn]] void refuse_cut(const MappedFile& file) {
  throw Error("IO008", "the file was cut short while it was in use")
      .where(file.path())
      .fix("restore the file, then run the same command again; replace files by renaming a new one over them");
}

}  // namespace

MappedFile::MappedFile(const std::string& path, std::uint64_t max_bytes) : path_(path) {
  const int fd = open_regular(path, max_bytes, size_);
  if (size_ == 0) {
    ::close(fd);
    return;
  }
  void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  struct stat info {};
  ::fstat(fd, &info);
  ::close(fd);
  if (mapped == MAP_FAILED) throw Error("IO002", concat("cannot map: ", std::strerror(error))).where(path);
  data_ = static_cast<const std::byte*>(mapped);
  install_handler();
  MappedRange* range = claim_range();
  range->mark = false;
  range->lost = false;
  range->path = path_.c_str();
  range->device = info.st_dev;
  range->inode = info.st_ino;
  range->end = reinterpret_cast<std::uintptr_t>(data_) + size_;
  range->begin = reinterpret_cast<std::uintptr_t>(data_);
}

MappedFile::~MappedFile() {
  if (!data_) return;
  MappedRange* range = range_at(data_);
  range->begin = 0;
  ::munmap(const_cast<std::byte*>(data_), size_);
  range->used = false;
}

void mark_lost_pages(const MappedFile& file) {
  if (MappedRange* range = range_at(file.bytes().data())) range->mark = true;
}

void check_lost_pages(const MappedFile& file) {
  const MappedRange* range = range_at(file.bytes().data());
  if (range && range->lost) refuse_cut(file);
}

void check_not_cut(const MappedFile& file) {
  check_lost_pages(file);
  const MappedRange* range = range_at(file.bytes().data());
  struct stat info {};
  if (!range || ::stat(file.path().c_str(), &info) != 0) return;
  // Another file, renamed over the mapped one, is not it.
  const bool same = info.st_dev == range->device && info.st_ino == range->inode;
  if (same && static_cast<std::size_t>(info.st_size) < file.bytes().size()) refuse_cut(file);
}

}  // namespace train_gpt_v2
