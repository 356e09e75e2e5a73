#include "trainer/algo/policy_loss.h"

#include <gtest/gtest.h>

#include <limits>

#include "core/base/error.h"
#include "tests/trainer/algo/near.h"
#include "tests/trainer/algo/policy_case.h"

namespace nibble {
namespace {

using Near = void (*)(double, double, const std::string&);

template <typename Real>
void expect_matches(const Json& json, Near near) {
  const std::string name = json["name"];
  const auto policy_case = read_policy_case<Real>(json);
  std::vector<Real> grad(policy_case.logp.size(), Real{-99});
  const PolicyLoss out = policy_loss<Real>(policy_case.batch(), read_policy_config(json["params"]),
                                           policy_case.totals(), grad);
  near(out.loss, json["loss"], name + " loss");
  near(out.policy_loss, json["pg_loss"], name + " policy_loss");
  if (json.contains("kl_loss")) near(out.kl_loss, json["kl_loss"], name + " kl_loss");
  const auto expected_grad = flatten(json["grad_logp"]);
  for (size_t i = 0; i < grad.size(); ++i) {
    near(grad[i], expected_grad[i], name + " gradient of token " + std::to_string(i));
  }
  const Json& metrics = json["metrics"];
  near(out.clip_share, metrics["pg_clipfrac"], name + " clip_share");
  near(out.old_kl_mean, metrics["ppo_kl"], name + " old_kl_mean");
  near(out.ess, metrics["ess_ratio"], name + " ess");
  near(out.rollout_diff_mean, metrics["train_rollout_logprob_abs_diff"], name + " rollout_diff");
  near(out.rollout_kl_mean, metrics["train_rollout_kl"], name + " rollout_kl");
}

TEST(PolicyLoss, MatchesTheOracleInDoubleAndFloat) {
  int num_cases = 0;
  for (const Json& json : rl_fixture("policy_losses.json")) {
    if (json["params"].contains("opsm_delta")) continue;  // masking by sequence KL is not built
    ++num_cases;
    expect_matches<double>(json, expect_near_double);
    expect_matches<float>(json, expect_near_float);
  }
  EXPECT_EQ(num_cases, 18);
}

PolicyCase<double> two_samples() {
  PolicyCase<double> out;
  out.logp = {-1, -2, -0.5};
  out.old_logp = {-1.1, -1.7, -0.5};
  out.advantage = {1, 1, -1};
  out.mask = {1, 0, 1};
  out.sample_begin = {0, 2, 3};
  return out;
}

double loss_of(const PolicyCase<double>& policy_case, const PolicyLossConfig& config = {}) {
  std::vector<double> grad(policy_case.logp.size());
  return policy_loss<double>(policy_case.batch(), config, policy_case.totals(), grad).loss;
}

TEST(PolicyLoss, NeverReadsMaskedTokens) {
  auto garbage = two_samples();
  garbage.logp[1] = garbage.old_logp[1] = garbage.advantage[1] =
      std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(loss_of(garbage), loss_of(two_samples()));
}

TEST(PolicyLoss, RefusesValuesThatAreNotFiniteNamingThePlace) {
  auto broken = two_samples();
  broken.old_logp[2] = -std::numeric_limits<double>::infinity();
  try {
    loss_of(broken);
    FAIL() << "accepted -inf";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(error.what(), "policy loss: old_logp of token 0 of sample 1 is -inf");
  }
}

TEST(PolicyLoss, RefusesMissingInputsAndBadBounds) {
  PolicyLossConfig tis;
  tis.correction.kind = OffPolicyCorrection::kTis;
  EXPECT_THROW(loss_of(two_samples(), tis), Error);
  PolicyLossConfig kl;
  kl.kl_coef = 0.1;
  EXPECT_THROW(loss_of(two_samples(), kl), Error);
  auto backwards = two_samples();
  backwards.sample_begin = {0, 4, 3};
  EXPECT_THROW(loss_of(backwards), Error);
  auto open_end = two_samples();
  open_end.sample_begin = {0, 2};
  EXPECT_THROW(loss_of(open_end), Error);
  const auto policy_case = two_samples();
  std::vector<double> grad(3);
  EXPECT_THROW(policy_loss<double>(policy_case.batch(), {}, LossTotals{1, 2}, grad), Error);
}

TEST(PolicyLoss, RefusesConfigsOutOfRange) {
  const auto refuses = [](auto change) {
    PolicyLossConfig config;
    change(config);
    EXPECT_THROW(validate(config), Error);
  };
  refuses([](PolicyLossConfig& c) { c.clip_low = 1.5; });
  refuses([](PolicyLossConfig& c) { c.clip_high = std::nan(""); });
  refuses([](PolicyLossConfig& c) { c.dual_clip = 1; });
  refuses([](PolicyLossConfig& c) { c.sum_norm = 0; });
  refuses([](PolicyLossConfig& c) { c.correction.high = 0; });
  refuses([](PolicyLossConfig& c) { c.kl_coef = -1; });
  EXPECT_NO_THROW(validate(PolicyLossConfig{}));
}

TEST(PolicyLoss, IsZeroForAFullyMaskedStep) {
  auto masked = two_samples();
  masked.mask = {0, 0, 0};
  for (const Aggregation aggregation : {Aggregation::kSeqMeanTokenMean, Aggregation::kTokenMean,
                                        Aggregation::kSeqMeanTokenSumNorm}) {
    PolicyLossConfig config;
    config.aggregation = aggregation;
    EXPECT_EQ(loss_of(masked, config), 0);
  }
}

}  // namespace
}  // namespace nibble
