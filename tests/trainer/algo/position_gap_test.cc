#include "trainer/algo/position_gap.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

using Means = std::vector<std::pair<std::string, double>>;

TEST(PositionGap, RangesDouble) {
  PositionGap gap;
  gap.add(0, 1.0);
  gap.add(15, 3.0);
  gap.add(16, 5.0);
  gap.add(31, 6.0);
  gap.add(32, 7.0);
  gap.add(63, 9.0);
  gap.add(128, 11.0);
  EXPECT_EQ(PositionGap::means(gap.sums()), (Means{{"logprob_abs_diff_to_16", 2.0},
                                                   {"logprob_abs_diff_to_32", 5.5},
                                                   {"logprob_abs_diff_to_64", 8.0},
                                                   {"logprob_abs_diff_to_256", 11.0}}));
}

TEST(PositionGap, NothingAddedHasNoMeans) {
  EXPECT_TRUE(PositionGap::means(PositionGap().sums()).empty());
}

TEST(PositionGap, TheLastRangeIsOpen) {
  PositionGap gap;
  gap.add(int64_t{1} << 40, 2.0);
  const Means means = PositionGap::means(gap.sums());
  ASSERT_EQ(means.size(), 1u);
  EXPECT_EQ(means[0], (Means::value_type{"logprob_abs_diff_to_524288", 2.0}));
}

TEST(PositionGap, SumsOfRanksAddUp) {
  PositionGap one;
  PositionGap two;
  PositionGap both;
  for (int64_t position = 0; position < 200; ++position) {
    const double value = static_cast<double>(position % 8);
    (position % 3 == 0 ? one : two).add(position, value);
    both.add(position, value);
  }
  PositionGap::Sums sums = one.sums();
  for (size_t i = 0; i < sums.size(); ++i) sums[i] += two.sums()[i];
  EXPECT_EQ(PositionGap::means(sums), PositionGap::means(both.sums()));
}

}  // namespace
}  // namespace nibble
