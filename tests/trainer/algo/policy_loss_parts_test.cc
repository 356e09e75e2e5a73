// What the fixtures do not show: parts add up to the whole, gradients are derivatives.
#include <gtest/gtest.h>

#include <random>

#include "tests/trainer/algo/near.h"
#include "tests/trainer/algo/policy_case.h"
#include "trainer/algo/policy_loss.h"

namespace nibble {
namespace {

PolicyCase<double> random_case(uint32_t seed) {
  std::mt19937 random(seed);
  const auto uniform = [&](double low, double high) {
    return low + (high - low) * (static_cast<double>(random()) / 4294967296.0);
  };
  PolicyCase<double> out;
  for (const int length : {3, 1, 6, 4, 2, 9}) {
    for (int i = 0; i < length; ++i) {
      out.logp.push_back(uniform(-4, -0.1));
      out.old_logp.push_back(out.logp.back() + uniform(-0.6, 0.6));
      out.rollout_logp.push_back(out.old_logp.back() + uniform(-1, 1));
      out.ref_logp.push_back(out.logp.back() + uniform(-1, 1));
      out.advantage.push_back(uniform(-2, 2));
      out.mask.push_back(length == 1 || uniform(0, 1) < 0.25 ? 0 : 1);
    }
    out.sample_begin.push_back(out.sample_begin.back() + length);
  }
  return out;
}

std::vector<PolicyLossConfig> all_configs() {
  std::vector<PolicyLossConfig> configs;
  for (const auto objective : {PolicyObjective::kPpoClip, PolicyObjective::kGspo,
                               PolicyObjective::kCispo, PolicyObjective::kSft}) {
    for (const auto aggregation : {Aggregation::kSeqMeanTokenMean, Aggregation::kTokenMean,
                                   Aggregation::kSeqMeanTokenSumNorm}) {
      for (const auto correction : {OffPolicyCorrection::kNone, OffPolicyCorrection::kTis,
                                    OffPolicyCorrection::kIcepop, OffPolicyCorrection::kMis}) {
        PolicyLossConfig config;
        config.objective = objective;
        config.aggregation = aggregation;
        config.correction.kind = correction;
        config.correction.low = 0.6;
        config.correction.high = 1.5;
        config.correction.mode = MisMode::kClip;
        config.correction.reject_level = MisLevel::kGeometric;
        config.clip_high = 0.28;
        config.dual_clip = 1.2;
        config.sum_norm = 32;
        config.kl_coef = 0.3;
        config.kl_estimator = KlEstimator::kK3;
        config.kl_unbiased = correction == OffPolicyCorrection::kTis;
        configs.push_back(config);
      }
    }
  }
  return configs;
}

TEST(PolicyLossParts, AddUpToTheWholeUnderTheTotalsOfTheStep) {
  const auto whole = random_case(1);
  std::vector<double> grad(whole.logp.size());
  for (const PolicyLossConfig& config : all_configs()) {
    const PolicyLoss expected = policy_loss<double>(whole.batch(), config, whole.totals(), grad);
    LossTotals totals;
    for (const auto& [begin, end] : {std::pair{0, 1}, {1, 2}, {2, 5}, {5, 6}}) {
      totals += whole.samples(begin, end).totals();
    }
    PolicyLoss sum;
    std::vector<double> part_grads;
    for (const auto& [begin, end] : {std::pair{0, 1}, {1, 2}, {2, 5}, {5, 6}}) {
      const auto part = whole.samples(begin, end);
      std::vector<double> part_grad(part.logp.size());
      sum += policy_loss<double>(part.batch(), config, totals, part_grad);
      part_grads.insert(part_grads.end(), part_grad.begin(), part_grad.end());
    }
    EXPECT_EQ(part_grads, grad);
    expect_near_double(sum.loss, expected.loss, "loss");
    expect_near_double(sum.kl_loss, expected.kl_loss, "kl_loss");
    expect_near_double(sum.clip_share, expected.clip_share, "clip_share");
    expect_near_double(sum.ratio_mean, expected.ratio_mean, "ratio_mean");
    EXPECT_EQ(sum.ratio_max, expected.ratio_max);
    expect_near_double(sum.ess, expected.ess, "ess");
    expect_near_double(sum.correction_mean, expected.correction_mean, "correction_mean");
    expect_near_double(sum.correction_share, expected.correction_share, "correction_share");
    expect_near_double(sum.rejected_share, expected.rejected_share, "rejected_share");
    expect_near_double(sum.vetoed_share, expected.vetoed_share, "vetoed_share");
    expect_near_double(sum.rollout_diff_mean, expected.rollout_diff_mean, "rollout_diff_mean");
    EXPECT_EQ(sum.rollout_diff_max, expected.rollout_diff_max);
    expect_near_double(sum.reference_kl_mean, expected.reference_kl_mean, "reference_kl_mean");
  }
}

TEST(PolicyLossParts, WhatMisLeavesOutHasNoGradientAndIsCounted) {
  auto whole = random_case(3);
  whole.mask.assign(whole.mask.size(), 1);
  PolicyLossConfig config;
  config.aggregation = Aggregation::kTokenMean;
  config.correction.kind = OffPolicyCorrection::kMis;
  config.correction.mode = MisMode::kMask;
  config.clip_low = 1;
  config.clip_high = 100;
  config.correction.low = 0.7;
  config.correction.high = 1.4;
  whole.rollout_logp[0] = whole.old_logp[0] + 20;  // a ratio below the veto: the first sample
  std::vector<double> grad(whole.logp.size());
  const PolicyLoss out = policy_loss<double>(whole.batch(), config, whole.totals(), grad);
  const auto count = static_cast<double>(grad.size());
  double rejected = 0;
  for (size_t i = 0; i < grad.size(); ++i) {
    const double ratio = std::exp(whole.old_logp[i] - whole.rollout_logp[i]);
    const bool is_outside = ratio < 0.7 || ratio > 1.4;
    rejected += is_outside ? 1 : 0;
    const bool is_left_out = is_outside || static_cast<int64_t>(i) < whole.sample_begin[1];
    EXPECT_EQ(grad[i] == 0, is_left_out) << i;
  }
  expect_near_double(out.rejected_share, rejected / count, "rejected_share");
  expect_near_double(out.vetoed_share, static_cast<double>(whole.sample_begin[1]) / count,
                     "vetoed_share");
}

// cispo is left out: its clipped ratio is held constant, so its gradient is not that of its value.
TEST(PolicyLossParts, GradientIsTheDerivativeOfTheLoss) {
  constexpr double kStep = 1e-6;
  for (const PolicyLossConfig& config : all_configs()) {
    if (config.objective == PolicyObjective::kCispo) continue;
    auto point = random_case(2);
    const size_t num_tokens = point.logp.size();
    std::vector<double> grad(num_tokens), unused(num_tokens);
    policy_loss<double>(point.batch(), config, point.totals(), grad);
    for (size_t i = 0; i < num_tokens; ++i) {
      const double at = point.logp[i];
      point.logp[i] = at + kStep;
      const double above = policy_loss<double>(point.batch(), config, point.totals(), unused).loss;
      point.logp[i] = at - kStep;
      const double below = policy_loss<double>(point.batch(), config, point.totals(), unused).loss;
      point.logp[i] = at;
      EXPECT_NEAR(grad[i], (above - below) / (2 * kStep), 1e-7) << "token " << i;
    }
  }
}

TEST(PolicyLossParts, SftIsTheMeanNegativeLogProbWithoutAdvantages) {
  PolicyCase<double> whole = random_case(11);
  whole.advantage.clear();
  PolicyLossConfig config;
  config.objective = PolicyObjective::kSft;
  config.aggregation = Aggregation::kTokenMean;
  const LossTotals totals = count_totals(whole.mask, whole.sample_begin);
  std::vector<double> grad(whole.logp.size());
  const PolicyLoss loss = policy_loss<double>({.logp = whole.logp,
                                               .old_logp = whole.logp,
                                               .rollout_logp = {},
                                               .ref_logp = {},
                                               .advantage = {},
                                               .mask = whole.mask,
                                               .sample_begin = whole.sample_begin},
                                              config, totals, grad);
  double sum = 0.0, count = 0.0;
  for (size_t i = 0; i < whole.mask.size(); ++i) {
    sum -= whole.mask[i] != 0 ? whole.logp[i] : 0.0;
    count += whole.mask[i] != 0 ? 1.0 : 0.0;
  }
  expect_near_double(loss.loss, sum / count, "loss");
  for (size_t i = 0; i < grad.size(); ++i) {
    expect_near_double(grad[i], whole.mask[i] != 0 ? -1.0 / count : 0.0, "gradient");
  }
}

}  // namespace
}  // namespace nibble
