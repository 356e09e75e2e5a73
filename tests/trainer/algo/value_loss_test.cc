#include "trainer/algo/value_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/base/error.h"
#include "tests/trainer/algo/near.h"
#include "tests/trainer/algo/policy_case.h"
#include "trainer/algo/distillation.h"

namespace nibble {
namespace {

TEST(ValueLoss, MatchesTheOracleInValueAndGradient) {
  const Json fixture = rl_fixture("value_loss.json");
  ASSERT_EQ(fixture.size(), 1u);
  const Json& json = fixture[0];
  const auto value = flatten(json["values"]), old_value = flatten(json["old_values"]);
  const auto returns = flatten(json["returns"]), expected = flatten(json["grad_values"]);
  std::vector<uint8_t> mask;
  for (const double counts : flatten(json["mask"])) mask.push_back(counts != 0 ? 1 : 0);
  std::vector<int64_t> begin = {0};
  for (const Json& row : json["mask"]) {
    begin.push_back(begin.back() + static_cast<int64_t>(row.size()));
  }
  const LossTotals totals = count_totals(mask, begin);
  // Both samples of the fixture have five unmasked tokens, so that both means are one.
  for (const Aggregation aggregation : {Aggregation::kSeqMeanTokenMean, Aggregation::kTokenMean}) {
    std::vector<double> grad(value.size(), -99);
    const ValueLoss out = value_loss({value, old_value, returns, mask, begin}, json["clip"],
                                     aggregation, totals, grad);
    expect_near_double(out.loss, json["loss"], "loss");
    expect_near_double(out.clip_share, json["clipfrac"], "clip_share");
    for (size_t i = 0; i < grad.size(); ++i) {
      expect_near_double(grad[i], expected[i], "gradient of token " + std::to_string(i));
    }
  }
  std::vector<double> short_grad(1);
  EXPECT_THROW(value_loss({value, old_value, returns, mask, begin}, 0.2, Aggregation::kTokenMean,
                          totals, short_grad),
               Error);
}

TEST(Distillation, TheMeanOverTheStudentIsTheReverseKl) {
  const std::vector<double> student = {0.5, 0.3, 0.2}, teacher = {0.1, 0.6, 0.3};
  std::vector<double> logp, teacher_logp, advantages(3);
  double kl = 0, mean = 0;
  for (size_t i = 0; i < 3; ++i) {
    logp.push_back(std::log(student[i]));
    teacher_logp.push_back(std::log(teacher[i]));
    kl += student[i] * std::log(student[i] / teacher[i]);
  }
  distillation_advantages(logp, teacher_logp, advantages);
  for (size_t i = 0; i < 3; ++i) mean += student[i] * advantages[i];
  expect_near_double(mean, -kl, "mean advantage");
  std::vector<double> short_out(1);
  EXPECT_THROW(distillation_advantages(logp, teacher_logp, short_out), Error);
}

}  // namespace
}  // namespace nibble
