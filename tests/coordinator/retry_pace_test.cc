#include "coordinator/retry_pace.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// The wait after each failure, in seconds.
std::vector<int> waits(RetryPace& pace, int failures) {
  std::vector<int> found;
  SteadyClock::time_point now{};
  for (int i = 0; i < failures; ++i) {
    now += seconds(1000);
    pace.failed(1, now);
    int wait = 0;
    while (!pace.may_try(1, now + seconds(wait))) ++wait;
    if (wait > 0) {
      EXPECT_FALSE(pace.may_try(1, now + seconds(wait) - milliseconds(1)));
    }
    found.push_back(wait);
  }
  return found;
}

TEST(RetryPace, DoublesFromASecondToFiveMinutesAfterTheFirstTime) {
  RetryPace pace(2);
  EXPECT_TRUE(pace.may_try(0, {}));
  EXPECT_EQ(waits(pace, 12), (std::vector<int>{0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300}));
  EXPECT_TRUE(pace.may_try(0, {})) << "engines do not wait for one another";
}

TEST(RetryPace, EightPublicationsInARowMakeItForgetAndSevenDoNot) {
  RetryPace pace(2);
  waits(pace, 5);
  for (int i = 0; i < 7; ++i) pace.committed(1);
  EXPECT_EQ(waits(pace, 1), std::vector<int>{16});
  for (int i = 0; i < 8; ++i) pace.committed(1);
  EXPECT_EQ(waits(pace, 2), (std::vector<int>{0, 1}));
}

}  // namespace
}  // namespace nibble
