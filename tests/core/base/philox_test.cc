#include "core/base/philox.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

namespace nibble {
namespace {

std::array<uint32_t, 4> words(PhiloxWords counter, uint32_t key_low, uint32_t key_high) {
  const PhiloxWords out = philox4x32(counter, key_low, key_high);
  return {out.word[0], out.word[1], out.word[2], out.word[3]};
}

// "philox4x32 10" of the Random123 distribution's kat_vectors.
TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(words({{0, 0, 0, 0}}, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(words({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(words({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// The first two words of the vectors above, as a 53-bit fraction.
TEST(Philox, UniformIsTheTopBitsOfTheFirstTwoWords) {
  EXPECT_EQ(philox_uniform({0, 0, 0, 0}),
            static_cast<double>(0x6627e8d5e169c58dull >> 11) / 9007199254740992.0);
  EXPECT_EQ(philox_uniform({0x299f31d0a4093822, 0x85a308d3243f6a88, 0x13198a2e, 0x03707344}),
            static_cast<double>(0xd16cfe0994fdccebull >> 11) / 9007199254740992.0);
}

TEST(Philox, EveryPartOfADrawsIdentityChangesIt) {
  std::set<double> seen;
  for (const DrawId& id :
       {DrawId{1, 2, 3, 4}, DrawId{2, 2, 3, 4}, DrawId{1ull << 32, 2, 3, 4}, DrawId{1, 3, 3, 4},
        DrawId{1, 2ull << 32, 3, 4}, DrawId{1, 2, 4, 4}, DrawId{1, 2, 3, 5}}) {
    const double uniform = philox_uniform(id);
    EXPECT_GE(uniform, 0.0);
    EXPECT_LT(uniform, 1.0);
    EXPECT_TRUE(seen.insert(uniform).second);
  }
}

TEST(Philox, UniformsOfConsecutivePositionsFillTheInterval) {
  std::array<int, 16> bin{};
  constexpr int kDraws = 16000;
  for (uint32_t position = 0; position < kDraws; ++position) {
    ++bin[static_cast<size_t>(philox_uniform({7, 11, 0, position}) * 16)];
  }
  double chi_square = 0.0;
  for (const int count : bin) chi_square += (count - 1000.0) * (count - 1000.0) / 1000.0;
  EXPECT_LT(chi_square, 44.3);  // 15 degrees of freedom, p = 1e-4
  EXPECT_GT(chi_square, 1.0);   // a lattice would be too even
}

}  // namespace
}  // namespace nibble
