#include "cli/length_tail.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace nibble {
namespace {

std::vector<double> as_numbers(const std::vector<int64_t>& lengths) {
  return {lengths.begin(), lengths.end()};
}

TEST(LongTailedLengths, HaveTheMedianAndTheTailOfALogNormal) {
  const LengthTail tail{100.0, 0.8, 1'000'000, 5};
  const auto lengths = as_numbers(long_tailed_lengths(20'000, tail));
  EXPECT_NEAR(quantile(lengths, 0.5), 100.0, 3.0);
  // exp(0.8 * 1.6449), the 95th percentile of the normal
  EXPECT_NEAR(quantile(lengths, 0.95), 372.8, 15.0);
  EXPECT_NEAR(quantile(lengths, 0.05), 26.8, 1.5);
}

TEST(LongTailedLengths, AreCutAtBothEnds) {
  const auto lengths = long_tailed_lengths(1'000, {4.0, 2.0, 50, 1});
  EXPECT_EQ(*std::min_element(lengths.begin(), lengths.end()), 1);
  EXPECT_EQ(*std::max_element(lengths.begin(), lengths.end()), 50);
}

TEST(LongTailedLengths, DependOnTheSeedAndBeginAlike) {
  const LengthTail tail{64.0, 1.0, 512, 9};
  const auto some = long_tailed_lengths(10, tail);
  auto more = long_tailed_lengths(20, tail);
  LengthTail other = tail;
  other.seed = 10;
  EXPECT_NE(long_tailed_lengths(20, other), more);
  more.resize(10);
  EXPECT_EQ(more, some);
}

TEST(LongTailedLengths, WithoutSpreadAllHaveTheMedian) {
  EXPECT_EQ(long_tailed_lengths(3, {7.0, 0.0, 512, 1}), (std::vector<int64_t>{7, 7, 7}));
}

TEST(Quantile, InterpolatesBetweenNeighbours) {
  EXPECT_EQ(quantile({4.0, 1.0, 3.0, 2.0}, 0.5), 2.5);
  EXPECT_EQ(quantile({4.0, 1.0, 3.0, 2.0}, 0.0), 1.0);
  EXPECT_EQ(quantile({4.0, 1.0, 3.0, 2.0}, 1.0), 4.0);
  EXPECT_EQ(quantile({}, 0.5), 0.0);
}

}  // namespace
}  // namespace nibble
