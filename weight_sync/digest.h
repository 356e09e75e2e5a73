#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/quant/hash.h"

namespace nibble {

/// 128 bits that stand for a manifest or a plan. Two sides that computed different ones disagree.
/// Guards against mistakes, not against an adversary.
struct Digest {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const Digest&, const Digest&) = default;
};

/// 32 hexadecimal characters.
std::string digest_hex(const Digest& digest);
/// 16 bytes, little endian, as they travel.
std::string digest_bytes(const Digest& digest);
/// Throws Error{kInvalidArgument} unless there are exactly 16 bytes.
Digest digest_from_bytes(std::string_view bytes);

/// Digest of a sequence of numbers and texts. Each text counts with its length, so that no two
/// sequences read the same.
class DigestBuilder {
 public:
  void add(uint64_t value);
  void add(int64_t value) { add(static_cast<uint64_t>(value)); }
  void add(std::string_view text);
  Digest digest() const { return {hash_.low, hash_.high}; }

 private:
  void add_word(uint32_t word) { hash_ += quant::hash_element(word, position_++); }
  quant::ContentHash hash_;
  uint64_t position_ = 0;
};

}  // namespace nibble
