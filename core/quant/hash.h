#pragma once

#include <cstdint>

#include "core/base/host_device.h"

namespace nibble::quant {

/// A 128-bit content hash that composes: the hash of a tensor is the sum (mod 2^64, per half) of
/// the hashes of any disjoint slices that cover it, whatever their shape or order. So slices of
/// any layout compose, and CPU and GPU agree without agreeing on a traversal. Guards against
/// corruption, truncation and misplacement; it is not a cryptographic hash.
struct ContentHash {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const ContentHash&, const ContentHash&) = default;
  NIBBLE_HOST_DEVICE ContentHash& operator+=(const ContentHash& other) {
    low += other.low;
    high += other.high;
    return *this;
  }
};

/// splitmix64's finalizer (Steele, Lea, Flood 2014).
NIBBLE_HOST_DEVICE inline uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// Contribution of one stored element: a 32-bit word of packed codes or a BF16 value's bits, at
/// its absolute element position in the whole tensor.
NIBBLE_HOST_DEVICE inline ContentHash hash_element(uint32_t value, uint64_t position) {
  const uint64_t seed = mix64(position + 0x9e3779b97f4a7c15ull) ^ value;
  return {mix64(seed), mix64(seed + 0x632be59bd9b4e019ull)};
}

}  // namespace nibble::quant
