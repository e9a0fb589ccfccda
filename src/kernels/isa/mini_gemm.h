#pragma once
// Small products on contiguous scratch, for attention: C[m, n] (+)= A[m, units] * B[units, n], B and C row-major, n a
// multiple of 16, element (i, k) of A at a[i * row_step + k * unit_step]. Units as in gemm_pack.h.

template <bool kPairs, int kRows, int kVectors>
inline __attribute__((always_inline)) void mini_tile(std::int64_t units, const float* a, std::int64_t row_step,
                                                     std::int64_t unit_step, const float* b, std::int64_t b_stride,
                                                     float* c, std::int64_t c_stride, bool accumulate) {
  Vec acc[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) acc[i][j] = accumulate ? load(c + i * c_stride + j * kLanes) : zero();
  }
  for (std::int64_t k = 0; k < units; ++k) {
    Vec right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = load(b + k * b_stride + j * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const float* left = a + i * row_step + k * unit_step;
      for (int j = 0; j < kVectors; ++j) acc[i][j] = multiply_add<kPairs>(left, right[j], acc[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) store(c + i * c_stride + j * kLanes, acc[i][j]);
  }
}

struct MiniGemm {
  std::int64_t m, n, units;
  const float* a;
  std::int64_t row_step, unit_step;
  const float* b;
  std::int64_t b_stride;
  float* c;
  std::int64_t c_stride;
  bool accumulate;
};

// One strip of kVectors vectors of columns; kRows at a time, then the rest one by one.
template <bool kPairs, int kRows, int kVectors>
inline void mini_strip(const MiniGemm& g, std::int64_t j) {
  std::int64_t i = 0;
  for (; i + kRows <= g.m; i += kRows) {
    mini_tile<kPairs, kRows, kVectors>(g.units, g.a + i * g.row_step, g.row_step, g.unit_step, g.b + j, g.b_stride,
                                       g.c + i * g.c_stride + j, g.c_stride, g.accumulate);
  }
  for (; i + 2 <= g.m; i += 2) {
    mini_tile<kPairs, 2, kVectors>(g.units, g.a + i * g.row_step, g.row_step, g.unit_step, g.b + j, g.b_stride,
                                   g.c + i * g.c_stride + j, g.c_stride, g.accumulate);
  }
  if (i < g.m) {
    mini_tile<kPairs, 1, kVectors>(g.units, g.a + i * g.row_step, g.row_step, g.unit_step, g.b + j, g.b_stride,
                                   g.c + i * g.c_stride + j, g.c_stride, g.accumulate);
  }
}

template <bool kPairs>
inline void mini_gemm(const MiniGemm& g) {
  std::int64_t j = 0;
#if defined(TGV2_SIMD_AVX512)
  for (; j + 64 <= g.n; j += 64) mini_strip<kPairs, 6, 4>(g, j);
  for (; j + 32 <= g.n; j += 32) mini_strip<kPairs, 12, 2>(g, j);
  for (; j + 16 <= g.n; j += 16) mini_strip<kPairs, 12, 1>(g, j);
#elif defined(TGV2_SIMD_AVX2)
  for (; j + 16 <= g.n; j += 16) mini_strip<kPairs, 6, 2>(g, j);
#else
  for (; j + 8 <= g.n; j += 8) mini_strip<kPairs, 4, 2>(g, j);
#endif
}
