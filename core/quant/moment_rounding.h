#pragma once

#include <cstdint>
#include <cstring>

#include "core/base/philox.h"
#include "core/quant/bf16.h"

// How AdamW's moments become BF16. Rounding to nearest would stall them: with beta2 = 0.999 a
// second moment changes by a thousandth of itself and less in a step, half a BF16 step is a 256th
// to a 512th, so that it would never come down again. Here a value goes up or down at random, so
// that its expectation is the value.

namespace nibble::quant {

/// What the rounding of one tensor's moments in one update is drawn by: the same draws wherever its
/// elements are and however many ranks share them.
struct MomentDraw {
  uint64_t seed = 0;
  uint32_t tensor = 0;
  uint32_t update = 0;
};

/// Random words of the tensor's elements 4 * quad to 4 * quad + 3.
NIBBLE_HOST_DEVICE inline PhiloxWords moment_words(const MomentDraw& draw, uint64_t quad) {
  const PhiloxWords counter = {
      {static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32), draw.tensor, draw.update}};
  return philox4x32(counter, static_cast<uint32_t>(draw.seed),
                    static_cast<uint32_t>(draw.seed >> 32));
}

/// One of the two BF16 values around a finite `value`: the one of larger magnitude for a share of
/// all 16-bit `random` that is the distance from the other. A value of BF16 stays.
NIBBLE_HOST_DEVICE inline uint16_t round_at_random(float value, uint32_t random) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + random) >> 16);
}

/// Both moments of one element, by its word.
NIBBLE_HOST_DEVICE inline uint16_t round_first_moment(float m, uint32_t word) {
  return round_at_random(m, word & 0xffffu);
}
NIBBLE_HOST_DEVICE inline uint16_t round_second_moment(float v, uint32_t word) {
  return round_at_random(v, word >> 16);
}

}  // namespace nibble::quant
