#pragma once
// One (segment, head) task of attention: its Q, K, V are copied once into contiguous scratch; probabilities exist only
// for one block of kQueryBlock rows against the keys up to the diagonal. With pair units (bf16) the operands of every
// product are rounded to bf16 and summed in float; otherwise everything is float.

inline constexpr std::int64_t kQueryBlock = 64;

inline std::int64_t round_up(std::int64_t n, std::int64_t to) {
  return (n + to - 1) / to * to;
}

// Hands out 64-byte aligned pieces of a worker's scratch; with a null base it only measures.
struct Pieces {
  char* base;
  std::size_t used = 0;
  template <typename T>
  T* take(std::int64_t count) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return p;
  }
};

template <bool kPairs>
struct HeadTypes {
  using Operand = float;
};
template <>
struct HeadTypes<true> {
  using Operand = Bf16;
};

// Sizes of one head: d elements per row, padded to `width` (a multiple of 16); rows padded to whole strips.
template <bool kPairs>
struct HeadShape {
  using Operand = typename HeadTypes<kPairs>::Operand;
  static constexpr std::int64_t kPer = kPairs ? 2 : 1;
  std::int64_t length, d, width, padded, units;
  HeadShape(std::int64_t length_, std::int64_t d_)
      : length(length_), d(d_), width(round_up(d_, 16)), padded(round_up(length_, 64)), units(width / kPer) {}
};

inline float* as_units(float* p) {
  return p;
}
inline float* as_units(Bf16* p) {
  return reinterpret_cast<float*>(p);
}

// rows[i] = (source row i + bias) * scale as operands; lanes past d are zero.
template <typename T, typename Operand>
inline void load_head(const T* src, std::int64_t stride, const float* bias, float scale, std::int64_t length,
                      std::int64_t d, std::int64_t width, Operand* rows) {
  const Vec s = splat(scale);
  for (std::int64_t i = 0; i < length; ++i) {
    for_columns(
        0, d, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
          Vec v = load(src + i * stride + j, span);
          if (bias) v = add(v, load(bias + j, span));
          store(rows + i * width + j, mul(v, s), span);
        });
    for (std::int64_t j = d; j < width; ++j) rows[i * width + j] = Operand{};
  }
}

// [length][units] -> [units][padded], zero past the last row.
template <bool kPairs>
inline void transpose_units(const float* rows, const HeadShape<kPairs>& s, float* out) {
  for (std::int64_t u = 0; u < s.units; ++u) {
    float* o = out + u * s.padded;
    std::memset(o + s.length, 0, static_cast<std::size_t>(s.padded - s.length) * sizeof(float));
  }
#ifdef TGV2_SIMD_AVX512
  for (std::int64_t i = 0; i < s.length; i += 16) {
    const int count = static_cast<int>(s.length - i < 16 ? s.length - i : 16);
    std::int64_t u = 0;
    for (; u + 16 <= s.units; u += 16) {
      __m512i r[16];
      for (int q = 0; q < 16; ++q) {
        r[q] = q < count ? _mm512_loadu_si512(rows + (i + q) * s.units + u) : _mm512_setzero_si512();
      }
      transpose16(r);
      for (int q = 0; q < 16; ++q)
        _mm512_storeu_si512(out + (u + q) * s.padded + i, r[q]);  // padded is a multiple of 64
    }
    for (; u < s.units; ++u) {
      for (int q = 0; q < count; ++q) std::memcpy(out + u * s.padded + i + q, rows + (i + q) * s.units + u, 4);
    }
  }
#else
  for (std::int64_t u = 0; u < s.units; ++u) {
    for (std::int64_t i = 0; i < s.length; ++i) out[u * s.padded + i] = rows[i * s.units + u];
  }
#endif
}

// Two rows of bf16 interleaved into pairs along the rows; a null second row counts as zero.
inline void interleave(const Bf16* first, const Bf16* second, std::int64_t count, Bf16* out) {
#ifdef TGV2_SIMD_AVX512
  for (std::int64_t j = 0; j < count; j += 16) {
    __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first + j)));
    if (second) {
      const __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(second + j)));
      v = _mm512_or_si512(v, _mm512_slli_epi32(w, 16));
    }
    _mm512_storeu_si512(out + 2 * j, v);
  }
#else
  for (std::int64_t j = 0; j < count; ++j) {
    out[2 * j] = first[j];
    out[2 * j + 1] = second ? second[j] : Bf16{0};
  }
#endif
}

// The B operand whose reduced dimension runs over rows: floats as they stand, bf16 as pairs of rows. `rows` past the
// end of the pairs up to `padded_rows` become zero.
inline const float* row_operand(const float* rows, std::int64_t, std::int64_t, std::int64_t, float*) {
  return rows;
}
inline const float* row_operand(const Bf16* rows, std::int64_t length, std::int64_t padded_rows, std::int64_t width,
                                Bf16* out) {
  std::int64_t i = 0;
  for (; i < length; i += 2) {
    interleave(rows + i * width, i + 1 < length ? rows + (i + 1) * width : nullptr, width, out + i * width);
  }
  if (i < padded_rows) {
    std::memset(static_cast<void*>(out + i * width), 0,
                static_cast<std::size_t>((padded_rows - i) * width) * sizeof(Bf16));
  }
  return as_units(out);
}

// Keep bits of key columns in groups of 128; calls body(column, span, bits) over [0, end).
template <typename Body>
inline __attribute__((always_inline)) void for_kept_keys(const Attention& a, std::int64_t segment, std::int64_t head,
                                                         std::int64_t query, std::int64_t end, Body&& body) {
  const std::uint32_t site = dropout_site_attention_probability(a.layer, static_cast<std::uint32_t>(head));
  const std::uint32_t row = dropout_row(static_cast<std::uint32_t>(segment), static_cast<std::uint32_t>(query));
  for_kept_columns(a.dropout, site, row, end, body);
}
