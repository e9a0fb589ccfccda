#include "scratch.h"

#include <sys/mman.h>

#include <limits>
#include <new>

namespace train_gpt_v2 {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t whole_pages(std::size_t bytes) {
  if (bytes > std::numeric_limits<std::size_t>::max() - kHugePage) throw std::bad_alloc();
  return (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

}  // namespace

void* map_memory(std::size_t bytes) {
  const std::size_t size = whole_pages(bytes ? bytes : 1);
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  ::madvise(memory, size, MADV_HUGEPAGE);
#endif
  return memory;
}

void unmap_memory(void* memory, std::size_t bytes) {
  if (memory) ::munmap(memory, whole_pages(bytes ? bytes : 1));
}

void* Scratch::bytes(std::size_t count) {
  if (count > bytes_) {
    clear();
    memory_ = map_memory(count);
    bytes_ = count;
  }
  return memory_;
}

void Scratch::clear() {
  unmap_memory(memory_, bytes_);
  memory_ = nullptr;
  bytes_ = 0;
}

}  // namespace train_gpt_v2
