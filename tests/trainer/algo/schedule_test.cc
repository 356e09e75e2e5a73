#include "trainer/algo/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <vector>

#include "core/base/error.h"
#include "tests/trainer/algo/near.h"
#include "trainer/algo/grad_clip.h"
#include "trainer/algo/overlong.h"

namespace nibble {
namespace {

TEST(LearningRate, MatchesTheOracle) {
  const std::map<std::string, LrStyle> styles = {
      {"constant", LrStyle::kConstant}, {"linear", LrStyle::kLinear}, {"cosine", LrStyle::kCosine}};
  const Json fixture = rl_fixture("lr_schedules.json");
  ASSERT_EQ(fixture.size(), 5u);
  for (const Json& run : fixture) {
    const LrSchedule schedule{styles.at(run["style"]), run["lr"],     run["min_lr"],
                              run["init_lr"],          run["warmup"], run["decay"]};
    for (size_t step = 0; step < run["lr_at_step"].size(); ++step) {
      const double expected = run["lr_at_step"][step];
      const double actual = learning_rate(schedule, static_cast<int64_t>(step));
      // Rates are as small as 1e-7: relative only.
      EXPECT_LE(std::abs(actual - expected), 1e-9 * expected + 1e-20)
          << run["style"] << " step " << step;
    }
  }
}

TEST(LearningRate, RefusesADecayThatEndsInTheWarmUp) {
  EXPECT_THROW(learning_rate({LrStyle::kCosine, 1, 0, 0, 10, 10}, 0), Error);
  EXPECT_THROW(learning_rate({LrStyle::kConstant, -1, 0, 0, 0, 0}, 0), Error);
  EXPECT_THROW(learning_rate({}, -1), Error);
}

TEST(OverlongPenalty, MatchesTheOracle) {
  const Json fixture = rl_fixture("overlong.json");
  ASSERT_EQ(fixture.size(), 2u);
  for (const Json& run : fixture) {
    for (const Json& point : run["cases"]) {
      expect_near_double(overlong_penalty(point[0], run["max_len"], run["cache"]), point[1],
                         point.dump());
    }
  }
}

TEST(OverlongPenalty, RefusesACacheThatIsEmptyOrLongerThanTheResponse) {
  EXPECT_THROW(overlong_penalty(1, 10, 0), Error);
  EXPECT_THROW(overlong_penalty(1, 10, 11), Error);
  EXPECT_THROW(overlong_penalty(-1, 10, 5), Error);
}

double sum_of_squares(const Json& values) {
  if (values.is_number()) return values.get<double>() * values.get<double>();
  double sum = 0;
  for (const Json& value : values) sum += sum_of_squares(value);
  return sum;
}

TEST(GradClipCoefficient, MatchesTheOracle) {
  const Json fixture = rl_fixture("grad_clip.json");
  ASSERT_EQ(fixture.size(), 2u);
  for (const Json& run : fixture) {
    const double norm = std::sqrt(sum_of_squares(run["grads"]));
    expect_near_double(norm, run["norm"], "norm");
    expect_near_double(grad_clip_coefficient(norm, run["max_norm"]), run["coef"], run["name"]);
  }
  EXPECT_TRUE(std::isnan(grad_clip_coefficient(std::nan(""), 1)));
}

}  // namespace
}  // namespace nibble
