#pragma once

#include <cstdint>

#include "core/base/host_device.h"

namespace nibble {

/// Four random words.
struct PhiloxWords {
  uint32_t word[4];
};

/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC11):
/// the four words that `counter` gives under the key (key_low, key_high). Pure.
NIBBLE_HOST_DEVICE inline PhiloxWords philox4x32(PhiloxWords counter, uint32_t key_low,
                                                 uint32_t key_high) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u;
  constexpr uint64_t kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u;
  constexpr uint32_t kWeyl1 = 0xBB67AE85u;
  constexpr int kRounds = 10;
  PhiloxWords c = counter;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = kMultiplier0 * c.word[0];
    const uint64_t product1 = kMultiplier1 * c.word[2];
    c = {{static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ key_low,
          static_cast<uint32_t>(product1),
          static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ key_high,
          static_cast<uint32_t>(product0)}};
    key_low += kWeyl0;
    key_high += kWeyl1;
  }
  return c;
}

/// What a sampled token's randomness depends on, and all it depends on.
struct DrawId {
  uint64_t seed = 0;
  uint64_t prompt_id = 0;
  uint32_t sample_index = 0;
  uint32_t position = 0;  ///< of the drawn token in its sequence, the prompt's first token being 0
};

/// The 53-bit uniform in [0, 1) of one draw.
NIBBLE_HOST_DEVICE inline double philox_uniform(const DrawId& id) {
  const PhiloxWords counter = {{static_cast<uint32_t>(id.prompt_id),
                                static_cast<uint32_t>(id.prompt_id >> 32), id.sample_index,
                                id.position}};
  const PhiloxWords out =
      philox4x32(counter, static_cast<uint32_t>(id.seed), static_cast<uint32_t>(id.seed >> 32));
  const uint64_t bits = (static_cast<uint64_t>(out.word[0]) << 32 | out.word[1]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

}  // namespace nibble
