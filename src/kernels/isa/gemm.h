#pragma once
// The GEMM's inner part: one task multiplies panels [panel_begin, panel_end) of A by column panels of a packed B. Every
// element of C is summed in one order: k blocks of at most kBlockUnits units one after another, k ascending in each.
//
// Tile: kTileRows x 2 vectors of accumulators. AVX-512: 12 x 32, 24 of 32 registers, 97 % of the FMA peak on Zen 4.

#ifdef TGV2_NATIVE_BF16
inline constexpr bool kPairUnits = true;
#else
inline constexpr bool kPairUnits = false;  // bf16 operands become floats when they are packed
#endif
#if defined(TGV2_SIMD_AVX512)
inline constexpr int kTileRows = 12;
#elif defined(TGV2_SIMD_AVX2)
inline constexpr int kTileRows = 6;
#else
inline constexpr int kTileRows = 4;
#endif
inline constexpr int kTileColumns = 2 * kLanes;
inline constexpr std::int64_t kBlockUnits = 512;

#include "gemm_pack.h"

// c + a * b for float units, c + dot product for pairs.
template <bool kPairs>
inline __attribute__((always_inline)) Vec multiply_add(const float* a, Vec b, Vec c) {
#ifdef TGV2_NATIVE_BF16
  if constexpr (kPairs) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(splat(*a)), reinterpret_cast<__m512bh>(b));
  }
#endif
  return fma(splat(*a), b, c);
}

template <bool kPairs, typename C>
inline __attribute__((always_inline)) void gemm_tile(std::int64_t units, const float* __restrict a,
                                                     const float* __restrict b, C* c, std::int64_t stride, int rows,
                                                     int columns, bool accumulate) {
  Vec left[kTileRows], right[kTileRows];
  for (int i = 0; i < kTileRows; ++i) left[i] = right[i] = zero();
  for (int i = 0; i < rows; ++i) __builtin_prefetch(c + i * stride, 1);
  for (std::int64_t k = 0; k < units; ++k) {
    const Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      left[i] = multiply_add<kPairs>(a + i, b0, left[i]);
      right[i] = multiply_add<kPairs>(a + i, b1, right[i]);
    }
    a += kTileRows;
    b += kTileColumns;
  }
  if (rows == kTileRows && columns == kTileColumns && !accumulate) {
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      store(c + i * stride, left[i]);
      store(c + i * stride + kLanes, right[i]);
    }
    return;
  }
  const int n0 = columns < kLanes ? columns : kLanes, n1 = columns - n0;
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) {
    if (i >= rows) break;
    C* row = c + i * stride;
    Vec x = left[i], y = right[i];
    if (accumulate) {
      x = add(x, load(row, n0));
      if (n1) y = add(y, load(row + kLanes, n1));
    }
    store(row, x, n0);
    if (n1) store(row + kLanes, y, n1);
  }
}

inline std::int64_t gemm_units(const Gemm& g) {
  return kPairUnits && g.a.type == Num::kBf16 ? (g.k + 1) / 2 : g.k;
}

// Blocks of nearly equal size; one block where half as many units again would not pay for a second pass over C.
inline std::int64_t gemm_block_units(std::int64_t units) {
  if (units <= kBlockUnits * 3 / 2) return units;
  const std::int64_t blocks = (units + kBlockUnits - 1) / kBlockUnits;
  return (units + blocks - 1) / blocks;
}

void gemm_pack_b(const Gemm& g, std::int64_t panel, float* packed) {
  pack_panel<kTileColumns>(g.b, !g.trans_b, g.n, panel, 0, g.k, packed + panel * gemm_units(g) * kTileColumns);
}

template <bool kPairs, typename C>
inline void gemm_task_typed(const Gemm& g, const GemmTask& t, C* c, std::int64_t stride, bool accumulate_first) {
  const std::int64_t units = gemm_units(g), block = gemm_block_units(units), per = kPairs ? 2 : 1;
  for (std::int64_t u = 0; u < units; u += block) {
    const std::int64_t count = units - u < block ? units - u : block;
    const std::int64_t k = g.k - u * per < count * per ? g.k - u * per : count * per;
    for (std::int64_t p = t.panel_begin; p < t.panel_end; ++p) {
      pack_panel<kTileRows>(g.a, g.trans_a, g.m, p, u * per, k, t.packed_a + (p - t.panel_begin) * count * kTileRows);
    }
    for (std::int64_t q = t.column_begin; q < t.column_end; ++q) {
      const float* b = t.packed_b + (q * units + u) * kTileColumns;
      const std::int64_t j = q * kTileColumns;
      const int columns = static_cast<int>(g.n - j < kTileColumns ? g.n - j : kTileColumns);
      for (std::int64_t p = t.panel_begin; p < t.panel_end; ++p) {
        const std::int64_t left = g.m - p * kTileRows;
        gemm_tile<kPairs>(count, t.packed_a + (p - t.panel_begin) * count * kTileRows, b,
                          c + (p - t.panel_begin) * kTileRows * stride + (j - t.column_begin * kTileColumns), stride,
                          static_cast<int>(left < kTileRows ? left : kTileRows), columns, accumulate_first || u > 0);
      }
    }
  }
}

void gemm_task(const Gemm& g, const GemmTask& t) {
  const std::int64_t row = t.panel_begin * kTileRows, column = t.column_begin * kTileColumns;
  const std::int64_t offset = row * g.c.stride + column;
  const auto run = [&](auto* c, std::int64_t stride, bool accumulate) __attribute__((always_inline)) {
#ifdef TGV2_NATIVE_BF16
    if (g.a.type == Num::kBf16) return gemm_task_typed<true>(g, t, c, stride, accumulate);
#endif
    gemm_task_typed<false>(g, t, c, stride, accumulate);
  };
  if (g.c.type == Num::kFloat) return run(static_cast<float*>(g.c.data) + offset, g.c.stride, g.accumulate);
  Bf16* c = static_cast<Bf16*>(g.c.data) + offset;
  const std::int64_t units = gemm_units(g);
  if (gemm_block_units(units) == units) return run(c, g.c.stride, false);
  // Several k blocks: the sums stay float in scratch until the last one.
  const std::int64_t columns = (t.column_end - t.column_begin) * kTileColumns;
  run(t.float_c, columns, false);
  const std::int64_t rows =
      g.m - row < (t.panel_end - t.panel_begin) * kTileRows ? g.m - row : (t.panel_end - t.panel_begin) * kTileRows;
  const std::int64_t width = g.n - column < columns ? g.n - column : columns;
  for (std::int64_t i = 0; i < rows; ++i) convert(c + i * g.c.stride, t.float_c + i * columns, width);
}
