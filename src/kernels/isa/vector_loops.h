#pragma once
// Loops over rows of any length: whole vectors, then one partial vector; and over blocks of 128 columns with their keep
// bits. The body receives the column and a Span that load/store take in place of a lane count.

struct Whole {};
struct Part {
  int lanes;
};
template <typename T>
inline Vec load(const T* p, Whole) {
  return load(p);
}
template <typename T>
inline Vec load(const T* p, Part part) {
  return load(p, part.lanes);
}
template <typename T>
inline void store(T* p, Vec v, Whole) {
  store(p, v);
}
template <typename T>
inline void store(T* p, Vec v, Part part) {
  store(p, v, part.lanes);
}

// body(column, span) for columns begin, begin + kLanes, ... < end.
template <typename Body>
inline __attribute__((always_inline)) void for_columns(std::int64_t begin, std::int64_t end, Body&& body) {
  std::int64_t j = begin;
  for (; j + kLanes <= end; j += kLanes) body(j, Whole{});
  if (j < end) body(j, Part{static_cast<int>(end - j)});
}

// body(column, span, bits): the lowest bits are the keep decisions of this vector; all ones when dropout is off.
template <typename Body>
inline __attribute__((always_inline)) void for_kept_columns(const Dropout& dropout, std::uint32_t site,
                                                            std::uint32_t row, std::int64_t columns, Body&& body) {
  std::uint32_t bits[4] = {~0u, ~0u, ~0u, ~0u};
  for (std::int64_t block = 0; block < columns; block += 128) {
    if (dropout.active()) keep_bits(dropout, site, row, static_cast<std::uint32_t>(block / 128), bits);
    const std::int64_t end = block + 128 < columns ? block + 128 : columns;
    for_columns(
        block, end, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
          const std::int64_t c = j - block;
          body(j, span, bits[c / 32] >> (c % 32));
        });
  }
}

void dropout_scale_row(const Dropout& dropout, std::uint32_t site, std::uint32_t row, std::int64_t columns,
                              float* out) {
  const Vec scale = splat(dropout.scale);
  for_kept_columns(
      dropout, site, row, columns, [&](std::int64_t j, auto span, std::uint32_t bits) __attribute__((always_inline)) {
        store(out + j, keep(bits, scale), span);
      });
}
