#pragma once
// A buffer that only grows, in memory mapped for it alone: huge pages where the system grants them, and no page faults
// once it has its size. Throws std::bad_alloc.

#include <cstddef>
#include <utility>

namespace train_gpt_v2 {

void* map_memory(std::size_t bytes);  // zeroed; touched by nobody yet
void unmap_memory(void* memory, std::size_t bytes);

class Scratch {
 public:
  Scratch() = default;
  Scratch(Scratch&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { clear(); }

  // At least this many bytes; the contents are lost when it grows.
  void* bytes(std::size_t count);
  float* floats(std::size_t count) { return static_cast<float*>(bytes(count * sizeof(float))); }

 private:
  void clear();

  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace train_gpt_v2
