#pragma once
// What reads bytes from outside, one entry each. A target returns when the input was read or refused with an Error;
// everything else (another exception, a signal, a sanitizer's report, much memory or time) is a finding.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace train_gpt_v2::fuzz {

struct Target {
  std::string_view name;  // also the folder of its seeds under tests/fuzz/corpus
  void (*run)(std::span<const std::uint8_t> input);
};

void fuzz_packed(std::span<const std::uint8_t> input);  // fuzz_packed.cc

std::span<const Target> targets();
const Target* find_target(std::string_view name);

}  // namespace train_gpt_v2::fuzz
