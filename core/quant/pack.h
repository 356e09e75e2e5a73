#pragma once

#include <cstdint>

#include "core/base/host_device.h"

namespace nibble::quant {

/// compressed-tensors "pack-quantized" words: code k of a word sits at bits `bits * k`, lowest
/// first, along the input, stored with an offset of 2^(bits-1).
constexpr int kInt4PerWord = 8;
constexpr int kInt8PerWord = 4;
constexpr int kInt4Offset = 8;
constexpr int kInt8Offset = 128;

NIBBLE_HOST_DEVICE inline int int4_at(uint32_t word, int k) {
  return static_cast<int>((word >> (4 * k)) & 0xfu) - kInt4Offset;
}
NIBBLE_HOST_DEVICE inline int int8_at(uint32_t word, int k) {
  return static_cast<int>((word >> (8 * k)) & 0xffu) - kInt8Offset;
}
NIBBLE_HOST_DEVICE inline uint32_t int4_bits(int code, int k) {
  return static_cast<uint32_t>(code + kInt4Offset) << (4 * k);
}
NIBBLE_HOST_DEVICE inline uint32_t int8_bits(int code, int k) {
  return static_cast<uint32_t>(code + kInt8Offset) << (8 * k);
}

/// One bit for every 4-bit code, and for every byte, of `word` that is not zero: its lowest.
NIBBLE_HOST_DEVICE inline uint32_t nonzero_codes(uint32_t word) {
  word |= word >> 1;
  word |= word >> 2;
  return word & 0x11111111u;
}
NIBBLE_HOST_DEVICE inline uint32_t nonzero_bytes(uint32_t word) {
  word |= word >> 4;
  word |= word >> 2;
  word |= word >> 1;
  return word & 0x01010101u;
}

/// Words of one row of `cols` codes: the last one padded with zero bits.
constexpr int64_t int4_row_words(int64_t cols) { return (cols + kInt4PerWord - 1) / kInt4PerWord; }
constexpr int64_t int8_row_words(int64_t cols) { return (cols + kInt8PerWord - 1) / kInt8PerWord; }

}  // namespace nibble::quant
