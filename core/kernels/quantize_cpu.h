#pragma once

// Body of quantize.h for one ISA; included only by isa_*.cc.

#include "core/kernels/hash_cpu.h"
#include "core/kernels/parallel.h"
#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kMaxGroup = 128;

// One group; returns false if a weight is not finite, and sets *overflow if a dequantized weight
// is not. The arithmetic is core/quant/group_codec.h's, sixteen lanes at a time.
inline bool quantize_group(const float* master, int64_t group, uint32_t* words, uint16_t* scale,
                           bool* overflow) {
  F32x16 rounded[kMaxGroup / kLanes];
  F32x16 top = zero();
  F32x16 probe = zero();
  for (int64_t i = 0; i < group; i += kLanes) {
    const F32x16 w = round_bf16(load(master + i));
    rounded[i / kLanes] = w;
    top = maximum(absolute(w), top);
    // x * 0 is NaN exactly for NaN and infinity; of the master too, whose rounding may hide a NaN.
    probe = probe + w * zero() + load(master + i) * zero();
  }
  if (!(reduce_add(probe) == 0.0f)) return false;
  const float absmax = reduce_max(top);
  float s = absmax / 7.0f;
  uint32_t bits;
  memcpy(&bits, &s, sizeof bits);
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  if (bits < 0x0080u) bits = 0x3f80u;
  *scale = static_cast<uint16_t>(bits);
  bits <<= 16;
  memcpy(&s, &bits, sizeof s);
  const F32x16 divisor = splat(s);
  for (int64_t i = 0; i < group; i += kLanes) {
    F32x16 q = round_even(rounded[i / kLanes] / divisor);
    q = minimum(maximum(q, splat(-7.0f)), splat(7.0f)) + splat(8.0f);
    store_nibbles(words + i / 8, q);
  }
  // Only code +-7 can overflow, and only if the rounded scale's seven-fold does.
  float seven = 7.0f * s;
  uint32_t seven_bits;
  memcpy(&seven_bits, &seven, sizeof seven_bits);
  *overflow = ((seven_bits + 0x7fffu + ((seven_bits >> 16) & 1u)) & 0x7f800000u) == 0x7f800000u;
  return true;
}

// First failing group index in [begin, end), or -1; *is_overflow tells which failure.
[[maybe_unused]] int64_t quantize_groups_isa(const float* master, int64_t group, int64_t begin,
                                             int64_t end, uint32_t* words, uint16_t* scale,
                                             bool* is_overflow) {
  for (int64_t g = begin; g < end; ++g) {
    bool overflow = false;
    const bool finite =
        quantize_group(master + g * group, group, words + g * group / 8, scale + g, &overflow);
    if (!finite || overflow) {
      *is_overflow = finite;
      return g;
    }
  }
  return -1;
}

[[maybe_unused]] int64_t cast_bf16_isa(const float* master, int64_t begin, int64_t end,
                                       uint16_t* bf16) {
  int64_t bad = -1;
  for (int64_t i = begin; i < end; i += kLanes) {
    const int n = static_cast<int>(min_of(kLanes, end - i));
    const F32x16 w = load_partial(master + i, n, 0.0f);
    const F32x16 rounded = round_bf16(w);
    if (!(reduce_add(rounded * zero() + w * zero()) == 0.0f) && bad < 0) {
      for (int lane = 0; lane < n && bad < 0; ++lane) {
        float value[kLanes];
        store(value, rounded * zero() + w * zero());
        if (!(value[lane] == 0.0f)) bad = i + lane;
      }
    }
    if (n == kLanes) {
      store_bf16(bf16 + i, rounded);
    } else {
      uint16_t tail[kLanes];
      store_bf16(tail, rounded);
      for (int lane = 0; lane < n; ++lane) bf16[i + lane] = tail[lane];
    }
  }
  return bad;
}

}  // namespace
}  // namespace nibble::kernels
