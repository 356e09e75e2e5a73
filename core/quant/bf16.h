#pragma once

#include <cstdint>
#include <cstring>

#include "core/base/host_device.h"

namespace nibble::quant {

/// The float whose upper half is `bits`. Exact.
NIBBLE_HOST_DEVICE inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

/// Round to nearest, ties to even. NaN stays NaN (quiet), overflow becomes infinity.
NIBBLE_HOST_DEVICE inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// `value` rounded to BF16 and widened again.
NIBBLE_HOST_DEVICE inline float round_to_bf16(float value) {
  return bf16_to_float(float_to_bf16(value));
}

NIBBLE_HOST_DEVICE inline bool bf16_is_finite(uint16_t bits) { return (bits & 0x7f80u) != 0x7f80u; }

}  // namespace nibble::quant
