#pragma once
// Counter-based random numbers (Philox4x32-10, Salmon et al. 2011), the same on every platform and compiler.
//
// A stream is (seed, stream, counter): stateless use gives reproducible plans from (seed, epoch); the object form is
// for places that draw one number after another and is fully described by its three numbers.

#include <array>
#include <cstdint>
#include <vector>

namespace train_gpt_v2 {

// One block of four 32-bit words for a 128-bit counter under a 64-bit key. Known answer: tests/unit/core.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

class RandomStream {
 public:
  struct State {
    std::uint64_t seed = 0, stream = 0, position = 0;  // position counts the 32-bit words drawn
    bool operator==(const State&) const = default;
  };

  RandomStream(std::uint64_t seed, std::uint64_t stream) : state_{seed, stream, 0} {}
  explicit RandomStream(const State& state) : state_(state) {}

  std::uint32_t next_u32();
  std::uint64_t next_u64();
  double uniform();                          // [0, 1), 53 bits
  double normal();                           // Box-Muller; two uniforms per call
  std::uint64_t below(std::uint64_t bound);  // unbiased, [0, bound)
  const State& state() const { return state_; }

 private:
  State state_;
  std::array<std::uint32_t, 4> block_{};
  std::uint64_t block_index_ = UINT64_MAX;
};

// Fisher-Yates over 0..count-1 with the stream's numbers; a pure function of the stream's state.
std::vector<std::uint32_t> random_permutation(std::uint32_t count, RandomStream& stream);

template <typename T>
void shuffle(std::vector<T>& items, RandomStream& stream) {
  for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[stream.below(i)]);
}

}  // namespace train_gpt_v2
