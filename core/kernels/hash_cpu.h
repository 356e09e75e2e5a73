#pragma once

// Body of hash_words() and hash_bf16() (quantize.h) for one ISA; included only through
// quantize_cpu.h. Bound by 64-bit multiplications: five an element, the hash has six.

#include <cstdint>

#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

// quant::mix64 and hash_element, here so that they are compiled for this ISA.
constexpr uint64_t kMixFirst = 0xbf58476d1ce4e5b9ull;
constexpr uint64_t kMixSecond = 0x94d049bb133111ebull;
constexpr uint64_t kPositionOffset = 0x9e3779b97f4a7c15ull;
constexpr uint64_t kHighOffset = 0x632be59bd9b4e019ull;

inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * kMixFirst;
  x = (x ^ (x >> 27)) * kMixSecond;
  return x ^ (x >> 31);
}

struct HashSum {
  uint64_t low = 0;
  uint64_t high = 0;
};

// Some processors (or their hypervisors) prefetch nothing by themselves, and this much arithmetic
// leaves room for two or three lines in the reorder buffer: a core that reads 15 GB/s hashed 2 of
// 5 GB/s. From 1 to 4 KiB it makes little difference how far.
constexpr int64_t kPrefetchBytes = 2048;
// The lines of `kCount` values, that far ahead; reading beyond an array's end is harmless.
template <int64_t kCount, typename Element>
inline void prefetch(const Element* values) {
  const char* line = reinterpret_cast<const char*>(values) + kPrefetchBytes;
  for (int64_t byte = 0; byte < kCount * static_cast<int64_t>(sizeof(Element)); byte += 64) {
    __builtin_prefetch(line + byte);
  }
}

// One at a time; `offset_position` is the position of values[0] + kPositionOffset.
template <typename Element>
inline void hash_each(const Element* values, int64_t count, uint64_t offset_position,
                      HashSum* sum) {
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t seed = mix(offset_position + static_cast<uint64_t>(i)) ^ values[i];
    sum->low += mix(seed);
    sum->high += mix(seed + kHighOffset);
  }
}

#if defined(__AVX2__)

constexpr int kHashLanes = 8;

#if defined(__AVX512F__)

struct U64x8 {
  __m512i v;
};
inline U64x8 splat_u64(uint64_t x) { return {_mm512_set1_epi64(static_cast<int64_t>(x))}; }
inline U64x8 load_u64(const uint64_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_u64(uint64_t* p, U64x8 a) { _mm512_storeu_si512(p, a.v); }
inline U64x8 widen(const uint32_t* p) {
  return {_mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline U64x8 widen(const uint16_t* p) {
  return {_mm512_cvtepu16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline U64x8 operator+(U64x8 a, U64x8 b) { return {_mm512_add_epi64(a.v, b.v)}; }
inline U64x8 operator^(U64x8 a, U64x8 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int kBits>
inline U64x8 shift_right(U64x8 a) {
  return {_mm512_srli_epi64(a.v, kBits)};
}
template <uint64_t kFactor>
inline U64x8 times(U64x8 a) {
  return {_mm512_mullo_epi64(a.v, _mm512_set1_epi64(static_cast<int64_t>(kFactor)))};
}

#else

struct U64x8 {
  __m256i lo, hi;
};
inline U64x8 splat_u64(uint64_t x) {
  const __m256i half = _mm256_set1_epi64x(static_cast<int64_t>(x));
  return {half, half};
}
inline U64x8 load_u64(const uint64_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 4))};
}
inline void store_u64(uint64_t* p, U64x8 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 4), a.hi);
}
inline U64x8 widen(const uint32_t* p) {
  return {_mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepu32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 4)))};
}
inline U64x8 widen(const uint16_t* p) {
  return {_mm256_cvtepu16_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepu16_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 4)))};
}
inline U64x8 operator+(U64x8 a, U64x8 b) {
  return {_mm256_add_epi64(a.lo, b.lo), _mm256_add_epi64(a.hi, b.hi)};
}
inline U64x8 operator^(U64x8 a, U64x8 b) {
  return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)};
}
template <int kBits>
inline U64x8 shift_right(U64x8 a) {
  return {_mm256_srli_epi64(a.lo, kBits), _mm256_srli_epi64(a.hi, kBits)};
}
// AVX2 multiplies 32 bits by 32 bits: the three products whose sum is not beyond 2^64.
template <uint64_t kFactor>
inline __m256i times_half(__m256i a) {
  const __m256i factor = _mm256_set1_epi64x(static_cast<int64_t>(kFactor));
  const __m256i factor_high = _mm256_set1_epi64x(static_cast<int64_t>(kFactor >> 32));
  const __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(a, factor_high),
                                         _mm256_mul_epu32(_mm256_srli_epi64(a, 32), factor));
  return _mm256_add_epi64(_mm256_mul_epu32(a, factor), _mm256_slli_epi64(cross, 32));
}
template <uint64_t kFactor>
inline U64x8 times(U64x8 a) {
  return {times_half<kFactor>(a.lo), times_half<kFactor>(a.hi)};
}

#endif

inline U64x8 mix(U64x8 x) {
  x = times<kMixFirst>(x ^ shift_right<30>(x));
  x = times<kMixSecond>(x ^ shift_right<27>(x));
  return x ^ shift_right<31>(x);
}

// Positions of an aligned block of kBlock have all but their low bits in common, and with them the
// x >> 30 of the position's mix. So x ^ (x >> 30) is a common part plus one below kBlock, and the
// first product the common part's (one multiplication a block) plus one of these kBlock, which
// depend on the low bits of x >> 30 alone: they hold for 2^30 positions.
struct PositionProducts {
  static constexpr uint64_t kBlock = 32;
  explicit PositionProducts(uint64_t position_high) : high(position_high) {
    for (uint64_t i = 0; i < kBlock; ++i) low[i] = (i ^ (high % kBlock)) * kMixFirst;
  }
  uint64_t common(uint64_t block_begin) const {
    return ((block_begin ^ high) & ~(kBlock - 1)) * kMixFirst;
  }
  uint64_t high;  // of positions: x >> 30
  alignas(64) uint64_t low[kBlock];
};

template <typename Element>
inline void hash_range(const Element* values, int64_t begin, int64_t end, uint64_t first,
                       uint64_t* low, uint64_t* high) {
  constexpr auto kBlock = static_cast<int64_t>(PositionProducts::kBlock);
  values += begin;
  int64_t left = end - begin;
  uint64_t x = first + static_cast<uint64_t>(begin) + kPositionOffset;
  HashSum edges;
  const int64_t head = min_of(left, static_cast<int64_t>(-x % PositionProducts::kBlock));
  hash_each(values, head, x, &edges);
  values += head;
  left -= head;
  x += static_cast<uint64_t>(head);
  PositionProducts products(x >> 30);
  U64x8 low_sum = splat_u64(0);
  U64x8 high_sum = splat_u64(0);
  for (; left >= kBlock; left -= kBlock, values += kBlock, x += PositionProducts::kBlock) {
    if (x >> 30 != products.high) products = PositionProducts(x >> 30);
    prefetch<kBlock>(values);
    const U64x8 common = splat_u64(products.common(x));
    for (int i = 0; i < kBlock; i += kHashLanes) {
      U64x8 seed = common + load_u64(products.low + i);
      seed = times<kMixSecond>(seed ^ shift_right<27>(seed));
      seed = seed ^ shift_right<31>(seed) ^ widen(values + i);
      low_sum = low_sum + mix(seed);
      high_sum = high_sum + mix(seed + splat_u64(kHighOffset));
    }
  }
  hash_each(values, left, x, &edges);
  uint64_t lanes[2][kHashLanes];
  store_u64(lanes[0], low_sum);
  store_u64(lanes[1], high_sum);
  *low = edges.low;
  *high = edges.high;
  for (int i = 0; i < kHashLanes; ++i) {
    *low += lanes[0][i];
    *high += lanes[1][i];
  }
}

#else

template <typename Element>
inline void hash_range(const Element* values, int64_t begin, int64_t end, uint64_t first,
                       uint64_t* low, uint64_t* high) {
  constexpr int64_t kBlock = 64;
  HashSum sum;
  for (int64_t i = begin; i < end; i += kBlock) {
    prefetch<kBlock>(values + i);
    hash_each(values + i, min_of(kBlock, end - i),
              first + static_cast<uint64_t>(i) + kPositionOffset, &sum);
  }
  *low = sum.low;
  *high = sum.high;
}

#endif

[[maybe_unused]] void hash_words_isa(const uint32_t* values, int64_t begin, int64_t end,
                                     uint64_t first, uint64_t* low, uint64_t* high) {
  hash_range(values, begin, end, first, low, high);
}
[[maybe_unused]] void hash_bf16_isa(const uint16_t* values, int64_t begin, int64_t end,
                                    uint64_t first, uint64_t* low, uint64_t* high) {
  hash_range(values, begin, end, first, low, high);
}

}  // namespace
}  // namespace nibble::kernels
