#include "weight_sync/digest.h"

#include "core/base/fail.h"

namespace nibble {

std::string digest_hex(const Digest& digest) {
  return fmt::format("{:016x}{:016x}", digest.high, digest.low);
}

std::string digest_bytes(const Digest& digest) {
  std::string bytes;
  for (const uint64_t half : {digest.low, digest.high}) {
    for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>((half >> (8 * i)) & 0xff));
  }
  return bytes;
}

Digest digest_from_bytes(std::string_view bytes) {
  if (bytes.size() != 16) {
    fail(ErrorCode::kInvalidArgument, "a digest has 16 bytes, not {}", bytes.size());
  }
  Digest digest;
  for (size_t i = 0; i < 16; ++i) {
    const auto byte = static_cast<uint64_t>(static_cast<unsigned char>(bytes[i]));
    (i < 8 ? digest.low : digest.high) |= byte << (8 * (i % 8));
  }
  return digest;
}

void DigestBuilder::add(uint64_t value) {
  add_word(static_cast<uint32_t>(value));
  add_word(static_cast<uint32_t>(value >> 32));
}

void DigestBuilder::add(std::string_view text) {
  add(static_cast<uint64_t>(text.size()));
  for (const char c : text) add_word(static_cast<unsigned char>(c));
}

}  // namespace nibble
