#pragma once

// w' = bf16(q * s) of sixteen INT4 codes at once, exactly as core/quant/group_codec.h defines it.
// Included only by isa_*.cc, after simd.h.

#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

#if defined(__AVX512F__)

// What rounding does depends on the scale's mantissa alone; its exponent only shifts the result. So
// a group's sixteen weights are one line of a table times a power of two, which is exact. Both
// tables fit the first-level cache.
struct Int4Tables {
  alignas(64) float weight[128][16];  // bf16(q * 1.mantissa), q = -8 .. 7
  alignas(64) float power[256];       // 2^(exponent - 127); not of exponent 0, nor of signs
};

constexpr float rounded_product(int code, int mantissa) {
  int size = (code < 0 ? -code : code) * (128 + mantissa);  // times 2^7; exact
  int unit = 1;
  while (size >= 256 * unit) unit *= 2;  // of the last of eight bits
  const int rest = size % unit;
  size -= rest;
  if (2 * rest > unit || (2 * rest == unit && size / unit % 2 == 1)) size += unit;
  const float value = static_cast<float>(size) / 128.0f;
  return code < 0 ? -value : value;
}

constexpr Int4Tables make_int4_tables() {
  Int4Tables tables{};
  for (int mantissa = 0; mantissa < 128; ++mantissa) {
    for (int code = -8; code < 8; ++code) {
      tables.weight[mantissa][code + 8] = rounded_product(code, mantissa);
    }
  }
  tables.power[127] = 1.0f;
  for (int e = 128; e < 255; ++e) tables.power[e] = tables.power[e - 1] * 2.0f;
  for (int e = 126; e > 0; --e) tables.power[e] = tables.power[e + 1] / 2.0f;
  return tables;
}

constexpr Int4Tables kInt4Tables = make_int4_tables();

/// A group's sixteen possible weights: one register holds them all, so that dequantization is one
/// permute for sixteen weights.
struct Int4Group {
  __m512 table;
};
/// Scales that the tables do not have: subnormal ones, which only other quantizers write, and none
/// that is sound.
[[gnu::noinline]] inline Int4Group odd_int4_group(uint16_t scale_bits) {
  const __m512 codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  return {round_bf16({_mm512_mul_ps(codes, _mm512_set1_ps(bf16_value(scale_bits)))}).v};
}
inline Int4Group int4_group(uint16_t scale_bits) {
  const unsigned exponent = scale_bits >> 7;
  if (__builtin_expect(exponent - 1 >= 254, 0)) return odd_int4_group(scale_bits);
  return {_mm512_mul_ps(_mm512_load_ps(kInt4Tables.weight[scale_bits & 127]),
                        _mm512_set1_ps(kInt4Tables.power[exponent]))};
}

/// Lanes of int4_weights() hold inputs 0, 8, 1, 9, ..., 7, 15: so that both words of sixteen codes
/// come with one broadcast from memory, and no permute.
inline F32x16 to_int4_lanes(F32x16 x) {
  const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
  return {_mm512_permutexvar_ps(order, x.v)};
}
inline F32x16 from_int4_lanes(F32x16 x) {
  const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  return {_mm512_permutexvar_ps(order, x.v)};
}
/// Weights of the two words at `words`: sixteen consecutive inputs of one row, in int4 lanes.
inline F32x16 int4_weights(const Int4Group& group, const uint32_t* words) {
  const __m512i shift = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
  long long pair;
  memcpy(&pair, words, sizeof pair);
  const __m512i codes = _mm512_srlv_epi32(_mm512_set1_epi64(pair), shift);
  return {_mm512_permutexvar_ps(codes, group.table)};  // uses the low four bits of each lane
}

#elif defined(__AVX2__)

// Products are rounded by Veltkamp's splitting: with p = q s, which is exact, and r = p (2^16 + 1),
// rounded, r - (r - p) is p rounded to 24 - 16 = 8 bits: fewer operations than rounding in
// integers, and the same bits for every scale below 2^109.
constexpr uint16_t kLeastHugeScale = 0x7600;  // 2^109; negative ones, which nobody writes, too

struct Int4Group {
  __m256 scale;
  __m256 split;  // scale (2^16 + 1), exact; 0: a huge scale
};
inline Int4Group int4_group(uint16_t scale_bits) {
  const float scale = bf16_value(scale_bits);
  return {_mm256_set1_ps(scale),
          _mm256_set1_ps(scale_bits >= kLeastHugeScale ? 0.0f : scale * 65537.0f)};
}
inline F32x16 to_int4_lanes(F32x16 x) { return x; }
inline F32x16 from_int4_lanes(F32x16 x) { return x; }
inline __m256 int4_half(const Int4Group& group, uint32_t word) {
  const __m256i shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i code = _mm256_and_si256(
      _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(word)), shift), _mm256_set1_epi32(15));
  const __m256 q = _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(8)));
  const __m256 product = _mm256_mul_ps(q, group.scale);
  if (_mm256_cvtss_f32(group.split) == 0.0f) return round_bf16_half(product);
  const __m256 split = _mm256_mul_ps(q, group.split);
  return _mm256_sub_ps(split, _mm256_sub_ps(split, product));
}
inline F32x16 int4_weights(const Int4Group& group, const uint32_t* words) {
  return {int4_half(group, words[0]), int4_half(group, words[1])};
}

#else

struct Int4Group {
  float scale;
};
inline Int4Group int4_group(uint16_t scale_bits) { return {bf16_value(scale_bits)}; }
inline F32x16 to_int4_lanes(F32x16 x) { return x; }
inline F32x16 from_int4_lanes(F32x16 x) { return x; }
inline F32x16 int4_weights(const Int4Group& group, const uint32_t* words) {
  return round_bf16(each([&](int i) {
    const int code = static_cast<int>((words[i / 8] >> (4 * (i % 8))) & 15u) - 8;
    return static_cast<float>(code) * group.scale;
  }));
}

#endif

}  // namespace
}  // namespace nibble::kernels
