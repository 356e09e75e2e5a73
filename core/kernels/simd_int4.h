#pragma once

// w' = bf16(q * s) of sixteen INT4 codes at once, exactly as core/quant/group_codec.h defines it.
// Included only by isa_*.cc, after simd.h.

#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

#if defined(__AVX512F__)

/// A group's sixteen possible weights: one register holds them all, so that dequantization is one
/// permute for sixteen weights.
struct Int4Group {
  __m512 table;
};
inline Int4Group int4_group(float scale) {
  const __m512 codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  return {round_bf16({_mm512_mul_ps(codes, _mm512_set1_ps(scale))}).v};
}
/// Weights of the two words at `words`: sixteen consecutive inputs of one row.
inline F32x16 int4_weights(const Int4Group& group, const uint32_t* words) {
  const __m512i lane_word = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m512i shift = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  const __m512i pair =
      _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(words)));
  const __m512i codes = _mm512_srlv_epi32(_mm512_permutexvar_epi32(lane_word, pair), shift);
  return {_mm512_permutexvar_ps(codes, group.table)};  // uses the low four bits of each lane
}

#elif defined(__AVX2__)

struct Int4Group {
  __m256 scale;
};
inline Int4Group int4_group(float scale) { return {_mm256_set1_ps(scale)}; }
inline __m256 int4_half(const Int4Group& group, uint32_t word) {
  const __m256i shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i code = _mm256_and_si256(
      _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(word)), shift), _mm256_set1_epi32(15));
  const __m256 q = _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(8)));
  return round_bf16_half(_mm256_mul_ps(q, group.scale));
}
inline F32x16 int4_weights(const Int4Group& group, const uint32_t* words) {
  return {int4_half(group, words[0]), int4_half(group, words[1])};
}

#else

struct Int4Group {
  float scale;
};
inline Int4Group int4_group(float scale) { return {scale}; }
inline F32x16 int4_weights(const Int4Group& group, const uint32_t* words) {
  return round_bf16(each([&](int i) {
    const int code = static_cast<int>((words[i / 8] >> (4 * (i % 8))) & 15u) - 8;
    return static_cast<float>(code) * group.scale;
  }));
}

#endif

}  // namespace
}  // namespace nibble::kernels
