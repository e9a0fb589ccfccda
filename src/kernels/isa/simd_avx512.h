#pragma once
// Sixteen lanes: AVX-512 F/BW/DQ/VL, with native bf16 conversion where TGV2_NATIVE_BF16 is set. Included only inside
// the namespace of one instruction set; see isa/kernels.h.

inline constexpr int kLanes = 16;
using Vec = __m512;
using Bits = __mmask16;

inline Bits first_lanes(int n) {
  return static_cast<Bits>((1u << n) - 1u);
}

inline Vec zero() {
  return _mm512_setzero_ps();
}
inline Vec splat(float x) {
  return _mm512_set1_ps(x);
}
inline Vec load(const float* p) {
  return _mm512_loadu_ps(p);
}
inline Vec load(const float* p, int n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
inline void store(float* p, Vec v) {
  _mm512_storeu_ps(p, v);
}
inline void store(float* p, Vec v, int n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
}

inline Vec widen(__m256i h) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
inline Vec load(const Bf16* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load(const Bf16* p, int n) {
  return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}

// Round to nearest even; a NaN stays a quiet NaN.
inline __m256i narrow(Vec v) {
#ifdef TGV2_NATIVE_BF16
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
#else
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(r);
#endif
}
inline void store(Bf16* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v));
}
inline void store(Bf16* p, Vec v, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(v));
}

inline Vec add(Vec a, Vec b) {
  return _mm512_add_ps(a, b);
}
inline Vec sub(Vec a, Vec b) {
  return _mm512_sub_ps(a, b);
}
inline Vec mul(Vec a, Vec b) {
  return _mm512_mul_ps(a, b);
}
inline Vec div(Vec a, Vec b) {
  return _mm512_div_ps(a, b);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}  // a * b + c
inline Vec fnma(Vec a, Vec b, Vec c) {
  return _mm512_fnmadd_ps(a, b, c);
}  // c - a * b
inline Vec root(Vec a) {
  return _mm512_sqrt_ps(a);
}
// When one operand is NaN these give the second one: put the running value or the constant first.
inline Vec max(Vec a, Vec b) {
  return _mm512_max_ps(a, b);
}
inline Vec min(Vec a, Vec b) {
  return _mm512_min_ps(a, b);
}
inline Vec round_even(Vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec scale_by_power_of_two(Vec a, Vec n) {
  return _mm512_scalef_ps(a, n);
}
inline float sum(Vec a) {
  return _mm512_reduce_add_ps(a);
}
inline float greatest(Vec a) {
  return _mm512_reduce_max_ps(a);
}
inline int count_greater(Vec a, Vec b) {
  return __builtin_popcount(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ));
}
inline int count_greater(Vec a, Vec b, int n) {
  return __builtin_popcount(_mm512_mask_cmp_ps_mask(first_lanes(n), a, b, _CMP_GT_OQ));
}
// One Newton step on the 14-bit estimate: about 1e-7 relative.
inline Vec reciprocal(Vec d) {
  const Vec r = _mm512_rcp14_ps(d);
  return mul(r, fnma(d, r, splat(2.f)));
}
// Lane i where bit i of `bits` is set, else 0.
inline Vec keep(std::uint32_t bits, Vec a) {
  return _mm512_maskz_mov_ps(static_cast<Bits>(bits), a);
}

// ---- keep decisions (dropout.h): 16 Philox counters at once
struct PhiloxLanes {
  __m512i word[4];
};
inline PhiloxLanes philox7(std::uint32_t group, std::uint32_t row, std::uint32_t site, std::uint32_t step,
                           std::uint32_t key0, std::uint32_t key1) {
  const __m512i m0 = _mm512_set1_epi64(0xD2511F53u), m1 = _mm512_set1_epi64(0xCD9E8D57u);
  __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(group)),
                                _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  __m512i c1 = _mm512_set1_epi32(static_cast<int>(row)), c2 = _mm512_set1_epi32(static_cast<int>(site)),
          c3 = _mm512_set1_epi32(static_cast<int>(step));
  for (int round = 0; round < 7; ++round) {
    const __m512i e0 = _mm512_mul_epu32(c0, m0), o0 = _mm512_mul_epu32(_mm512_srli_epi64(c0, 32), m0);
    const __m512i e1 = _mm512_mul_epu32(c2, m1), o1 = _mm512_mul_epu32(_mm512_srli_epi64(c2, 32), m1);
    const __m512i hi0 = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(e0, 32), o0);
    const __m512i lo0 = _mm512_mask_blend_epi32(0xAAAA, e0, _mm512_slli_epi64(o0, 32));
    const __m512i hi1 = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(e1, 32), o1);
    const __m512i lo1 = _mm512_mask_blend_epi32(0xAAAA, e1, _mm512_slli_epi64(o1, 32));
    c0 = _mm512_ternarylogic_epi32(hi1, c1, _mm512_set1_epi32(static_cast<int>(key0)), 0x96);
    c1 = lo1;
    c2 = _mm512_ternarylogic_epi32(hi0, c3, _mm512_set1_epi32(static_cast<int>(key1)), 0x96);
    c3 = lo0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}
void keep_bits(const Dropout& d, std::uint32_t site, std::uint32_t row, std::uint32_t block,
                      std::uint32_t bits[4]) {
  const PhiloxLanes random =
      philox7((d.key.micro << 16) + block * 16, row, site, d.key.step, static_cast<std::uint32_t>(d.key.seed),
              static_cast<std::uint32_t>(d.key.seed >> 32));
  const __m512i threshold = _mm512_set1_epi16(static_cast<short>(d.threshold));
  for (int i = 0; i < 4; ++i) bits[i] = _mm512_cmpge_epu16_mask(random.word[i], threshold);
}
