#include "core/data/shuffled_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "core/base/error.h"
#include "core/base/splitmix64.h"

namespace nibble {
namespace {

std::vector<int64_t> draw_all(int64_t size, uint64_t seed) {
  ShuffledOrder order(size, seed);
  std::vector<int64_t> drawn;
  while (order.num_left() > 0) drawn.push_back(order.next());
  return drawn;
}

TEST(ShuffledOrder, IsFisherYatesFromTheFront) {
  for (const int64_t size : {1, 2, 3, 100}) {
    std::vector<int64_t> expected(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) expected[static_cast<size_t>(i)] = i;
    uint64_t state = 7;
    for (size_t i = 0; i < expected.size(); ++i) {
      std::swap(expected[i], expected[i + splitmix64(state) % (expected.size() - i)]);
    }
    EXPECT_EQ(draw_all(size, 7), expected);
  }
}

TEST(ShuffledOrder, TheSeedDecides) {
  EXPECT_EQ(draw_all(50, 1), draw_all(50, 1));
  EXPECT_NE(draw_all(50, 1), draw_all(50, 2));
}

TEST(ShuffledOrder, EveryOrderIsAsLikely) {
  std::array<int, 6> counts{};
  for (uint64_t seed = 0; seed < 6000; ++seed) {
    const auto order = draw_all(3, seed);
    ++counts[static_cast<size_t>(2 * order[0] + (order[1] > order[2] ? 1 : 0))];
  }
  for (const int count : counts) EXPECT_NEAR(count, 1000, 150);  // five standard deviations
}

TEST(ShuffledOrder, LargeSizesCostNothing) {
  ShuffledOrder order(int64_t{1} << 40, 0);
  for (int i = 0; i < 1000; ++i) {
    const int64_t number = order.next();
    EXPECT_TRUE(number >= 0 && number < int64_t{1} << 40);
  }
  ShuffledOrder none(0, 0);
  EXPECT_THROW(none.next(), Error);
}

}  // namespace
}  // namespace nibble
