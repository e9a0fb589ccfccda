#pragma once
// Packing for the GEMM: a panel holds W rows of A (or W columns of B) with the reduced dimension outermost, so that the
// tile kernel reads both operands in sequence. Unit = one float, or one pair of bf16 along the reduced dimension.

// Rows [panel * W, ...) of a matrix with `total` rows and k elements each, stored [total][stride], or [k][stride] when
// k_major. Rows past the end are zero.
template <int W, typename T>
inline void pack_floats(const T* src, std::int64_t stride, bool k_major, std::int64_t total, std::int64_t panel,
                        std::int64_t k, float* out) {
  const std::int64_t first = panel * W;
  const int valid = static_cast<int>(total - first < W ? total - first : W);
  if (k_major) {
    for (std::int64_t kk = 0; kk < k; ++kk) {
      const T* row = src + kk * stride + first;
      float* o = out + kk * W;
      if (valid == W) {
        for_columns(
            0, W, [&](std::int64_t j, auto span) __attribute__((always_inline)) {
              store(o + j, load(row + j, span), span);
            });
      } else {
        for (int i = 0; i < W; ++i) o[i] = i < valid ? get(row + i) : 0.f;
      }
    }
    return;
  }
  for (int i = 0; i < W; ++i) {
    const T* row = src + (first + i) * stride;
    for (std::int64_t kk = 0; kk < k; ++kk) out[kk * W + i] = i < valid ? get(row + kk) : 0.f;
  }
}

#ifdef TGV2_SIMD_AVX512
// Units of 16 rows along k: 16 floats, or 16 bf16 pairs; `left` elements remain.
inline __m512i units_along_k(const float* p, std::int64_t left) {
  return _mm512_castps_si512(left >= 16 ? load(p) : load(p, static_cast<int>(left)));
}
inline __m512i units_along_k(const Bf16* p, std::int64_t left) {
  return left >= 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16((1u << left) - 1u, p);
}

inline void transpose16(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// T = float: units are floats; T = Bf16: units are pairs. Rows lie along k: transpose 16 x 16 units at a time.
template <int W, typename T>
inline void pack_rows(const T* src, std::int64_t stride, std::int64_t total, std::int64_t panel, std::int64_t k,
                      float* out) {
  constexpr int kPer = 4 / static_cast<int>(sizeof(T));
  const std::int64_t units = (k + kPer - 1) / kPer;
  for (int h = 0; h < W; h += 16) {
    const int width = W - h < 16 ? W - h : 16;
    const std::int64_t first = panel * W + h;
    const Bits mask = first_lanes(width);
    for (std::int64_t u = 0; u < units; u += 16) {
      __m512i r[16];
      for (int i = 0; i < 16; ++i) {
        r[i] = i < width && first + i < total ? units_along_k(src + (first + i) * stride + u * kPer, k - u * kPer)
                                              : _mm512_setzero_si512();
      }
      transpose16(r);
      const int count = static_cast<int>(units - u < 16 ? units - u : 16);
      for (int i = 0; i < count; ++i) _mm512_mask_storeu_epi32(out + (u + i) * W + h, mask, r[i]);
    }
  }
}

// Pairs of a k-major bf16 matrix: rows k and k + 1 interleaved.
template <int W>
inline void pack_pairs_k_major(const Bf16* src, std::int64_t stride, std::int64_t total, std::int64_t panel,
                               std::int64_t k, float* out) {
  for (int h = 0; h < W; h += 16) {
    const std::int64_t first = panel * W + h, left = total - first;
    const int width = W - h < 16 ? W - h : 16;
    const int valid = left <= 0 ? 0 : static_cast<int>(left < width ? left : width);
    const Bits mask = first_lanes(width), in = first_lanes(valid);
    for (std::int64_t kk = 0; kk < k; kk += 2) {
      const Bf16* p = src + kk * stride + first;
      __m512i v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, p));
      if (kk + 1 < k) {
        const __m512i next = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, p + stride));
        v = _mm512_or_si512(v, _mm512_slli_epi32(next, 16));
      }
      _mm512_mask_storeu_epi32(out + kk / 2 * W + h, mask, v);
    }
  }
}
#endif

template <int W>
inline void pack_panel(const ConstMatrix& m, bool k_major, std::int64_t total, std::int64_t panel, std::int64_t k_begin,
                       std::int64_t k, float* out) {
  with_type(m, [&](auto* data) {
    const auto* src = data + k_begin * (k_major ? m.stride : 1);
#ifdef TGV2_SIMD_AVX512
    if constexpr (sizeof(*data) == sizeof(float) || kPairUnits) {
      if (!k_major) return pack_rows<W>(src, m.stride, total, panel, k, out);
    }
    if constexpr (sizeof(*data) != sizeof(float) && kPairUnits) {
      return pack_pairs_k_major<W>(src, m.stride, total, panel, k, out);
    }
#endif
    pack_floats<W>(src, m.stride, k_major, total, panel, k, out);
  });
}
