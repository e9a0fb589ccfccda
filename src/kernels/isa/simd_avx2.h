#pragma once
// Eight lanes: AVX2 and FMA. The same vocabulary as simd_avx512.h, where the remarks stand.

inline constexpr int kLanes = 8;
using Vec = __m256;

inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vec zero() {
  return _mm256_setzero_ps();
}
inline Vec splat(float x) {
  return _mm256_set1_ps(x);
}
inline Vec load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline Vec load(const float* p, int n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
inline void store(float* p, Vec v) {
  _mm256_storeu_ps(p, v);
}
inline void store(float* p, Vec v, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), v);
}

inline Vec widen(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline Vec load(const Bf16* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load(const Bf16* p, int n) {
  Bf16 full[8] = {};
  for (int i = 0; i < n; ++i) full[i] = p[i];
  return load(full);
}
inline __m128i narrow(Vec v) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08));
}
inline void store(Bf16* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v));
}
inline void store(Bf16* p, Vec v, int n) {
  Bf16 full[8];
  store(full, v);
  for (int i = 0; i < n; ++i) p[i] = full[i];
}

inline Vec add(Vec a, Vec b) {
  return _mm256_add_ps(a, b);
}
inline Vec sub(Vec a, Vec b) {
  return _mm256_sub_ps(a, b);
}
inline Vec mul(Vec a, Vec b) {
  return _mm256_mul_ps(a, b);
}
inline Vec div(Vec a, Vec b) {
  return _mm256_div_ps(a, b);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Vec fnma(Vec a, Vec b, Vec c) {
  return _mm256_fnmadd_ps(a, b, c);
}
inline Vec root(Vec a) {
  return _mm256_sqrt_ps(a);
}
inline Vec max(Vec a, Vec b) {
  return _mm256_max_ps(a, b);
}
inline Vec min(Vec a, Vec b) {
  return _mm256_min_ps(a, b);
}
inline Vec round_even(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// a * 2^n for whole n in [-252, 254]; two factors so that subnormal results come out.
inline Vec scale_by_power_of_two(Vec a, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const Vec f = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const Vec g = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return mul(mul(a, f), g);
}
inline float sum(Vec a) {
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
inline float greatest(Vec a) {
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
inline int count_greater(Vec a, Vec b) {
  return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ))));
}
inline int count_greater(Vec a, Vec b, int n) {
  const unsigned bits = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
  return __builtin_popcount(bits & ((1u << n) - 1u));
}
inline Vec reciprocal(Vec d) {
  return div(splat(1.f), d);
}
inline Vec keep(std::uint32_t bits, Vec a) {
  const __m256i select = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i chosen = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), select);
  return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(chosen, select)));
}

// ---- keep decisions (dropout.h): two times eight Philox counters
void keep_bits(const Dropout& d, std::uint32_t site, std::uint32_t row, std::uint32_t block,
                      std::uint32_t bits[4]) {
  const __m256i m0 = _mm256_set1_epi64x(0xD2511F53u), m1 = _mm256_set1_epi64x(0xCD9E8D57u);
  const __m256i threshold = _mm256_set1_epi16(static_cast<short>(d.threshold));
  bits[0] = bits[1] = bits[2] = bits[3] = 0;
  for (int half = 0; half < 2; ++half) {
    std::uint32_t key0 = static_cast<std::uint32_t>(d.key.seed), key1 = static_cast<std::uint32_t>(d.key.seed >> 32);
    const std::uint32_t group = (d.key.micro << 16) + block * 16 + static_cast<std::uint32_t>(half) * 8;
    __m256i c0 =
        _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(group)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m256i c1 = _mm256_set1_epi32(static_cast<int>(row)), c2 = _mm256_set1_epi32(static_cast<int>(site)),
            c3 = _mm256_set1_epi32(static_cast<int>(d.key.step));
    for (int round = 0; round < 7; ++round) {
      const __m256i e0 = _mm256_mul_epu32(c0, m0), o0 = _mm256_mul_epu32(_mm256_srli_epi64(c0, 32), m0);
      const __m256i e1 = _mm256_mul_epu32(c2, m1), o1 = _mm256_mul_epu32(_mm256_srli_epi64(c2, 32), m1);
      const __m256i hi0 = _mm256_blend_epi32(_mm256_srli_epi64(e0, 32), o0, 0xAA);
      const __m256i lo0 = _mm256_blend_epi32(e0, _mm256_slli_epi64(o0, 32), 0xAA);
      const __m256i hi1 = _mm256_blend_epi32(_mm256_srli_epi64(e1, 32), o1, 0xAA);
      const __m256i lo1 = _mm256_blend_epi32(e1, _mm256_slli_epi64(o1, 32), 0xAA);
      c0 = _mm256_xor_si256(_mm256_xor_si256(hi1, c1), _mm256_set1_epi32(static_cast<int>(key0)));
      c1 = lo1;
      c2 = _mm256_xor_si256(_mm256_xor_si256(hi0, c3), _mm256_set1_epi32(static_cast<int>(key1)));
      c3 = lo0;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    const __m256i word[4] = {c0, c1, c2, c3};
    for (int i = 0; i < 4; ++i) {
      const __m256i ge = _mm256_cmpeq_epi16(_mm256_max_epu16(word[i], threshold), word[i]);
      const __m128i packed = _mm_packs_epi16(_mm256_castsi256_si128(ge), _mm256_extracti128_si256(ge, 1));
      bits[i] |= static_cast<std::uint32_t>(_mm_movemask_epi8(packed)) << (16 * half);
    }
  }
}
