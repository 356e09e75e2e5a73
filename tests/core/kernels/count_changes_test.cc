#include <gtest/gtest.h>

#include <random>

#include "core/kernels/weight_kernels.h"

namespace nibble::kernels {
namespace {

TEST(CountChanges, CountsCodesValuesAndBytesAsALookAtEachOfThemDoes) {
  std::mt19937 random(5);
  std::vector<uint32_t> words(70001), next_words;
  std::vector<uint16_t> values(131071), next_values;
  for (auto& word : words) word = static_cast<uint32_t>(random());
  for (auto& value : values) value = static_cast<uint16_t>(random());
  next_words = words;
  next_values = values;
  PackingChanges want;
  for (auto& word : next_words) {
    if (random() % 5 != 0) continue;
    const uint32_t change = static_cast<uint32_t>(random() & random() & random());
    word ^= change;
    for (int k = 0; k < 8; ++k) want.codes += (change >> (4 * k) & 0xfu) != 0 ? 1 : 0;
    for (int k = 0; k < 4; ++k) want.bytes += (change >> (8 * k) & 0xffu) != 0 ? 1 : 0;
  }
  for (auto& value : next_values) {
    if (random() % 7 != 0) continue;
    const auto change = static_cast<uint16_t>(random() & random());
    value = static_cast<uint16_t>(value ^ change);
    want.values += change != 0 ? 1 : 0;
    want.bytes += ((change & 0xff) != 0 ? 1 : 0) + (change >> 8 != 0 ? 1 : 0);
  }
  const Serial serial;
  const CpuWeightKernels kernels(serial);
  const auto got = kernels.count_changes(
      std::vector<CompareJob>{{{words.data(), next_words.data()},
                               std::ssize(words),
                               {values.data(), next_values.data()},
                               std::ssize(values)},
                              {{}, 0, {values.data(), values.data()}, std::ssize(values)}});
  ASSERT_EQ(got.size(), 2u);
  EXPECT_EQ(got[0].codes, want.codes);
  EXPECT_EQ(got[0].values, want.values);
  EXPECT_EQ(got[0].bytes, want.bytes);
  EXPECT_EQ(got[1].values + got[1].bytes + got[1].codes, 0);
}

}  // namespace
}  // namespace nibble::kernels
