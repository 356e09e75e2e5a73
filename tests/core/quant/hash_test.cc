#include "core/quant/hash.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "core/quant/rows.h"

namespace nibble::quant {
namespace {

std::vector<uint32_t> sample_words() {
  std::vector<uint32_t> words(1000);
  std::iota(words.begin(), words.end(), 17u);
  return words;
}

TEST(ContentHash, SlicesInAnyOrderComposeToTheWhole) {
  const auto words = sample_words();
  const ContentHash whole = hash_words(words.data(), 1000, 0);
  ContentHash parts = hash_words(words.data() + 600, 400, 600);
  parts += hash_words(words.data(), 1, 0);
  parts += hash_words(words.data() + 1, 599, 1);
  EXPECT_EQ(whole, parts);
}

TEST(ContentHash, SeesASwapAShiftAndASingleBit) {
  const auto words = sample_words();
  const ContentHash whole = hash_words(words.data(), 1000, 0);
  auto changed = words;
  std::swap(changed[3], changed[4]);
  EXPECT_NE(whole, hash_words(changed.data(), 1000, 0));
  EXPECT_NE(whole, hash_words(words.data(), 1000, 1));
  for (int bit = 0; bit < 32; ++bit) {
    changed = words;
    changed[500] ^= 1u << bit;
    EXPECT_NE(whole, hash_words(changed.data(), 1000, 0));
  }
}

TEST(ContentHash, ZerosAreNotNeutral) {
  const std::vector<uint32_t> zeros(4, 0u);
  EXPECT_NE(hash_words(zeros.data(), 3, 0), hash_words(zeros.data(), 4, 0));
}

}  // namespace
}  // namespace nibble::quant
