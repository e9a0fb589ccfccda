#pragma once
// bfloat16 as plain bits: the upper half of a float. Conversions round to nearest even and keep NaN a NaN; float values
// that came from bf16 convert back exactly.

#include <cstdint>
#include <cstring>

namespace train_gpt_v2 {

struct Bf16 {
  std::uint16_t bits;
};

inline float to_float(Bf16 value) {
  const std::uint32_t u = static_cast<std::uint32_t>(value.bits) << 16;
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

inline Bf16 to_bf16(float value) {
  std::uint32_t u;
  std::memcpy(&u, &value, sizeof u);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((u >> 16) | 0x0040u)};
  return {static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

}  // namespace train_gpt_v2
