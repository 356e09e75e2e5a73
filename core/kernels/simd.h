#pragma once

// Sixteen floats with the same IEEE result per lane on AVX-512, AVX2 and plain C++. Included only
// by the translation units isa_*.cc; everything has internal linkage, because the linker must
// never pick an AVX-512 copy of an inline function for a machine without it.

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace nibble::kernels {
namespace {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

struct F32x16 {
  __m512 v;
};
inline F32x16 zero() { return {_mm512_setzero_ps()}; }
inline F32x16 splat(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
inline F32x16 load_partial(const float* p, int count, float fill) {
  return {_mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << count) - 1), p)};
}
inline void store_partial(float* p, int count, F32x16 a) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), a.v);
}
inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 maximum(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 minimum(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 absolute(F32x16 a) {
  return {_mm512_castsi512_ps(
      _mm512_and_epi32(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff)))};
}
inline F32x16 square_root(F32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
/// Half to even.
inline F32x16 round_even(F32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32x16 load_bf16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
/// Finite lanes only: no NaN handling.
inline F32x16 round_bf16(F32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return {_mm512_castsi512_ps(_mm512_and_epi32(up, _mm512_set1_epi32(-65536)))};
}
inline void store_bf16(uint16_t* p, F32x16 rounded) {
  const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(rounded.v), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
}
/// 2^n for integer-valued n in [-126, 127].
inline F32x16 exp2_integer(F32x16 n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
/// Sixteen whole numbers from 0 to 15 into two words, the first in the lowest bits.
inline void store_nibbles(uint32_t* words, F32x16 a) {
  const __m512i places =
      _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  const __m512i n = _mm512_sllv_epi32(_mm512_cvttps_epi32(a.v), places);
  words[0] = static_cast<uint32_t>(_mm512_mask_reduce_or_epi32(0x00ff, n));
  words[1] = static_cast<uint32_t>(_mm512_mask_reduce_or_epi32(0xff00, n));
}
inline float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }
/// The fixed tree: lanes i and i+8, then i+4, i+2, i+1.
inline float reduce_add(F32x16 a) {
  const __m256 s8 =
      _mm256_add_ps(_mm512_castps512_ps256(a.v),
                    _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

/// y[0..3] = reduce_add of a, b, c, d: the same tree, four at a time.
inline void store_sums(float* y, F32x16 a, F32x16 b, F32x16 c, F32x16 d) {
  const __m512 ab =
      _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x44), _mm512_shuffle_f32x4(a.v, b.v, 0xee));
  const __m512 cd =
      _mm512_add_ps(_mm512_shuffle_f32x4(c.v, d.v, 0x44), _mm512_shuffle_f32x4(c.v, d.v, 0xee));
  const __m512 s4 =
      _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  const __m512 s2 = _mm512_add_ps(s4, _mm512_permute_ps(s4, 0xee));
  const __m512 s1 = _mm512_add_ps(s2, _mm512_movehdup_ps(s2));
  const __m512i heads = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
  _mm_storeu_ps(y, _mm512_castps512_ps128(_mm512_permutexvar_ps(heads, s1)));
}

#elif defined(__AVX2__)

struct F32x16 {
  __m256 lo, hi;
};
inline F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F32x16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline F32x16 load_partial(const float* p, int count, float fill) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = i < count ? p[i] : fill;
  return load(lanes);
}
inline void store_partial(float* p, int count, F32x16 a) {
  float lanes[kLanes];
  store(lanes, a);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32x16 maximum(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline F32x16 minimum(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline F32x16 absolute(F32x16 a) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
inline F32x16 square_root(F32x16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
inline F32x16 round_even(F32x16 a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline __m256 widen_bf16(__m128i half) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline F32x16 load_bf16(const uint16_t* p) {
  return {widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline __m256 round_bf16_half(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  return _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(-65536)));
}
inline F32x16 round_bf16(F32x16 a) { return {round_bf16_half(a.lo), round_bf16_half(a.hi)}; }
inline void store_bf16(uint16_t* p, F32x16 rounded) {
  float lanes[kLanes];
  store(lanes, rounded);
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits;
    memcpy(&bits, &lanes[i], sizeof bits);
    p[i] = static_cast<uint16_t>(bits >> 16);
  }
}
inline __m256 exp2_integer_half(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline F32x16 exp2_integer(F32x16 n) { return {exp2_integer_half(n.lo), exp2_integer_half(n.hi)}; }
inline uint32_t nibbles_half(__m256 a) {
  const __m256i places = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i n = _mm256_sllv_epi32(_mm256_cvttps_epi32(a), places);
  const __m128i n4 = _mm_or_si128(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
  const __m128i n2 = _mm_or_si128(n4, _mm_shuffle_epi32(n4, 0x4e));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_or_si128(n2, _mm_shuffle_epi32(n2, 0xb1))));
}
inline void store_nibbles(uint32_t* words, F32x16 a) {
  words[0] = nibbles_half(a.lo);
  words[1] = nibbles_half(a.hi);
}
inline float reduce_max(F32x16 a) {
  const __m256 m8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
  const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
  return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
}
inline float reduce_add(F32x16 a) {
  const __m256 s8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

#else

struct F32x16 {
  float v[kLanes];
};
template <typename Function>
inline F32x16 each(Function function) {
  F32x16 out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = function(i);
  return out;
}
inline F32x16 zero() {
  return each([](int) { return 0.0f; });
}
inline F32x16 splat(float x) {
  return each([&](int) { return x; });
}
inline F32x16 load(const float* p) {
  return each([&](int i) { return p[i]; });
}
inline void store(float* p, F32x16 a) { memcpy(p, a.v, sizeof a.v); }
inline F32x16 load_partial(const float* p, int count, float fill) {
  return each([&](int i) { return i < count ? p[i] : fill; });
}
inline void store_partial(float* p, int count, F32x16 a) {
  for (int i = 0; i < count; ++i) p[i] = a.v[i];
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
// As MAXPS and MINPS: the second operand where the comparison is false.
inline F32x16 maximum(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32x16 minimum(F32x16 a, F32x16 b) {
  return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F32x16 absolute(F32x16 a) {
  return each([&](int i) { return __builtin_fabsf(a.v[i]); });
}
inline F32x16 square_root(F32x16 a) {
  return each([&](int i) { return __builtin_sqrtf(a.v[i]); });
}
inline F32x16 round_even(F32x16 a) {
  return each([&](int i) { return __builtin_rintf(a.v[i]); });
}
inline F32x16 load_bf16(const uint16_t* p) {
  return each([&](int i) {
    const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
  });
}
inline F32x16 round_bf16(F32x16 a) {
  return each([&](int i) {
    uint32_t bits;
    memcpy(&bits, &a.v[i], sizeof bits);
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
  });
}
inline void store_bf16(uint16_t* p, F32x16 rounded) {
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits;
    memcpy(&bits, &rounded.v[i], sizeof bits);
    p[i] = static_cast<uint16_t>(bits >> 16);
  }
}
inline F32x16 exp2_integer(F32x16 n) {
  return each([&](int i) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
  });
}
inline void store_nibbles(uint32_t* words, F32x16 a) {
  words[0] = words[1] = 0;
  for (int i = 0; i < kLanes; ++i) {
    words[i / 8] |= static_cast<uint32_t>(static_cast<int32_t>(a.v[i])) << (4 * (i % 8));
  }
}
inline float reduce_max(F32x16 a) {
  float result = a.v[0];
  for (int i = 1; i < kLanes; ++i) result = a.v[i] > result ? a.v[i] : result;
  return result;
}
inline float reduce_add(F32x16 a) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] = a.v[i] + a.v[i + width];
  }
  return a.v[0];
}

#endif

#if !defined(__AVX512F__)
inline void store_sums(float* y, F32x16 a, F32x16 b, F32x16 c, F32x16 d) {
  y[0] = reduce_add(a);
  y[1] = reduce_add(b);
  y[2] = reduce_add(c);
  y[3] = reduce_add(d);
}
#endif

/// e^x to about 1 ulp, the same bits everywhere. x is clamped to [-87.3, 88]: below that the
/// result is the smallest normal number, which the callers' sums absorb.
inline F32x16 exponential(F32x16 x) {
  x = minimum(maximum(x, splat(-87.3f)), splat(88.0f));
  const F32x16 n = round_even(x * splat(1.44269504088896341f));
  // Cody and Waite: ln 2 in two parts, so that r keeps its low bits.
  F32x16 r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  F32x16 p = splat(1.9875691500e-4f);  // Cephes expf
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + splat(1.0f));
  // n can be 127 at most: 88 / ln 2 = 126.96.
  return p * exp2_integer(n);
}

inline float bf16_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}
inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
}  // namespace nibble::kernels
