#pragma once
// Four lanes of plain C++ that any compiler turns into the vectors of its target. The same vocabulary as
// simd_avx512.h, where the remarks stand.

inline constexpr int kLanes = 4;
struct Vec {
  float lane[4];
};

template <typename F>
inline Vec lanewise(F f) {
  Vec r;
  for (int i = 0; i < 4; ++i) r.lane[i] = f(i);
  return r;
}

inline Vec zero() {
  return {{0, 0, 0, 0}};
}
inline Vec splat(float x) {
  return {{x, x, x, x}};
}
inline Vec load(const float* p) {
  return {{p[0], p[1], p[2], p[3]}};
}
inline Vec load(const float* p, int n) {
  return lanewise([=](int i) { return i < n ? p[i] : 0.f; });
}
inline void store(float* p, Vec v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v.lane[i];
}
inline void store(float* p, Vec v) {
  store(p, v, 4);
}

inline Vec load(const Bf16* p, int n) {
  return lanewise([=](int i) { return i < n ? to_float(p[i]) : 0.f; });
}
inline Vec load(const Bf16* p) {
  return load(p, 4);
}
inline void store(Bf16* p, Vec v, int n) {
  for (int i = 0; i < n; ++i) p[i] = to_bf16(v.lane[i]);
}
inline void store(Bf16* p, Vec v) {
  store(p, v, 4);
}

inline Vec add(Vec a, Vec b) {
  return lanewise([=](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec sub(Vec a, Vec b) {
  return lanewise([=](int i) { return a.lane[i] - b.lane[i]; });
}
inline Vec mul(Vec a, Vec b) {
  return lanewise([=](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec div(Vec a, Vec b) {
  return lanewise([=](int i) { return a.lane[i] / b.lane[i]; });
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return add(mul(a, b), c);
}
inline Vec fnma(Vec a, Vec b, Vec c) {
  return sub(c, mul(a, b));
}
inline Vec root(Vec a) {
  return lanewise([=](int i) { return __builtin_sqrtf(a.lane[i]); });
}
inline Vec max(Vec a, Vec b) {
  return lanewise([=](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec min(Vec a, Vec b) {
  return lanewise([=](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec round_even(Vec a) {
  return lanewise([=](int i) { return __builtin_rintf(a.lane[i]); });
}
inline Vec scale_by_power_of_two(Vec a, Vec n) {
  return lanewise([=](int i) {
    return n.lane[i] == n.lane[i] ? __builtin_ldexpf(a.lane[i], static_cast<int>(n.lane[i])) : n.lane[i];
  });
}
inline float sum(Vec a) {
  return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]);
}
inline float greatest(Vec a) {
  float m = a.lane[0];
  for (int i = 1; i < 4; ++i) m = m > a.lane[i] ? m : a.lane[i];
  return m;
}
inline int count_greater(Vec a, Vec b, int n) {
  int count = 0;
  for (int i = 0; i < n; ++i) count += a.lane[i] > b.lane[i];
  return count;
}
inline int count_greater(Vec a, Vec b) {
  return count_greater(a, b, 4);
}
inline Vec reciprocal(Vec d) {
  return div(splat(1.f), d);
}
inline Vec keep(std::uint32_t bits, Vec a) {
  return lanewise([=](int i) { return bits >> i & 1u ? a.lane[i] : 0.f; });
}

// ---- keep decisions (dropout.h), one Philox block after another: the definition that the vector forms repeat
void keep_bits(const Dropout& d, std::uint32_t site, std::uint32_t row, std::uint32_t block,
                      std::uint32_t bits[4]) {
  bits[0] = bits[1] = bits[2] = bits[3] = 0;
  for (std::uint32_t lane = 0; lane < 16; ++lane) {
    std::uint32_t key0 = static_cast<std::uint32_t>(d.key.seed), key1 = static_cast<std::uint32_t>(d.key.seed >> 32);
    std::uint32_t c[4] = {(d.key.micro << 16) + block * 16 + lane, row, site, d.key.step};
    for (int round = 0; round < 7; ++round) {
      const std::uint64_t p0 = static_cast<std::uint64_t>(c[0]) * 0xD2511F53u;
      const std::uint64_t p1 = static_cast<std::uint64_t>(c[2]) * 0xCD9E8D57u;
      c[0] = static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ key0;
      c[1] = static_cast<std::uint32_t>(p1);
      c[2] = static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ key1;
      c[3] = static_cast<std::uint32_t>(p0);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; ++i) {
      bits[i] |= static_cast<std::uint32_t>((c[i] & 0xffffu) >= d.threshold) << (2 * lane);
      bits[i] |= static_cast<std::uint32_t>(c[i] >> 16 >= d.threshold) << (2 * lane + 1);
    }
  }
}
