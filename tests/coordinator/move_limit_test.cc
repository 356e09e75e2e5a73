#include <gtest/gtest.h>

#include "coordinator/publication_attempt.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

TEST(MoveLimit, GivesBytesTheTimeOfTheSlowestRateWithinThatOfThePublication) {
  EXPECT_EQ(move_limit(0, 20'000'000, 120s), 10s);
  EXPECT_EQ(move_limit(1'000'000'000, 20'000'000, 120s), 60s);
  EXPECT_EQ(move_limit(1'000'000'000'000'000, 1, 120s), 120s);
  EXPECT_EQ(move_limit(1'000'000'000, 20'000'000, 4s), 4s);
  EXPECT_EQ(move_limit(1, 0, 120s), 120s);
}

}  // namespace
}  // namespace nibble
