// The whole loss down to the logits: log-softmax, policy loss, KL, entropy bonus and back.
#include <gtest/gtest.h>

#include <vector>

#include "core/base/error.h"
#include "core/kernels/log_softmax.h"
#include "tests/trainer/algo/near.h"
#include "tests/trainer/algo/policy_case.h"
#include "trainer/algo/entropy_bonus.h"
#include "trainer/algo/policy_loss.h"

namespace nibble {
namespace {

std::vector<float> floats(const Json& json) { return json.get<std::vector<float>>(); }

// A case of from_logits.json: one sample, float32 kernels.
struct LogitCase {
  explicit LogitCase(const Json& json)
      : params(json["params"]),
        rows(params["tokens"]),
        vocab(params["vocab"]),
        temperature(params["temperature"].get<float>()),
        target(json["tokens"].get<std::vector<int32_t>>()),
        stats(static_cast<size_t>(rows)) {
    const auto flat = flatten(json["logits"]);
    logits.assign(flat.begin(), flat.end());
    policy.old_logp = floats(json["old_logp"]);
    policy.ref_logp = floats(json["ref_logp"]);
    policy.rollout_logp = floats(json["rollout_logp"]);
    policy.advantage = floats(json["advantages"]);
    for (const double counts : json["mask"].get<std::vector<double>>()) {
      policy.mask.push_back(counts != 0 ? 1 : 0);
    }
    policy.sample_begin = {0, rows};
    kernels::log_softmax_stats(logits.data(), rows, vocab, temperature, stats.data(),
                               kernels::Serial());
    for (size_t r = 0; r < stats.size(); ++r) {
      const size_t at = r * static_cast<size_t>(vocab) + static_cast<size_t>(target[r]);
      policy.logp.push_back(stats[r].log_prob(logits[at], temperature));
      entropy.push_back(stats[r].entropy);
    }
    Json with_mean = params;
    with_mean["agg"] = "token-mean";
    config = read_policy_config(with_mean);
    config.entropy_coef = params["entropy_coef"];
  }

  Json params;
  int64_t rows, vocab;
  float temperature;
  std::vector<int32_t> target;
  std::vector<kernels::RowStats> stats;
  std::vector<float> logits, entropy;
  PolicyCase<float> policy;
  PolicyLossConfig config;
};

TEST(FromLogits, MatchesTheOracleInValueAndGradient) {
  const Json fixture = rl_fixture("from_logits.json");
  ASSERT_EQ(fixture.size(), 3u);
  for (const Json& json : fixture) {
    const std::string name = json["name"];
    LogitCase at(json);
    for (size_t r = 0; r < at.stats.size(); ++r) {
      expect_near_float(at.policy.logp[r], json["logp"][r], name + " logp");
      expect_near_float(at.entropy[r], json["entropy"][r], name + " entropy");
    }
    std::vector<float> grad(at.stats.size()), grad_entropy(at.stats.size());
    const double policy =
        policy_loss<float>(at.policy.batch(), at.config, at.policy.totals(), grad).loss;
    const double bonus = entropy_bonus({at.entropy, at.policy.mask, at.policy.sample_begin},
                                       at.config, at.policy.totals(), grad_entropy);
    expect_near_float(policy + bonus, json["loss"], name + " loss");
    kernels::log_prob_backward(at.logits.data(), at.stats.data(), at.target.data(),
                               {grad.data(), grad_entropy.data()}, at.rows, at.vocab,
                               at.temperature, kernels::Serial());
    const std::vector<double> expected = flatten(json["grad_logits"]);
    for (size_t i = 0; i < expected.size(); ++i) {
      expect_near_float(at.logits[i], expected[i], name + " gradient " + std::to_string(i));
    }
  }
}

TEST(EntropyBonus, IsLinearInTheCoefficientAndZeroWhereMasked) {
  const std::vector<float> entropy = {1, 2, 3};
  const std::vector<uint8_t> mask = {1, 0, 1};
  const std::vector<int64_t> begin = {0, 2, 3};
  const LossTotals totals = count_totals(mask, begin);
  PolicyLossConfig config;
  config.entropy_coef = 0.5;
  std::vector<float> grad(3, -99.0f), short_grad(1);
  expect_near_double(entropy_bonus({entropy, mask, begin}, config, totals, grad),
                     -0.5 * (1 + 3) / 2, "term");
  EXPECT_EQ(grad, (std::vector<float>{-0.25f, 0, -0.25f}));
  EXPECT_THROW(entropy_bonus({entropy, mask, begin}, config, totals, short_grad), Error);
}

}  // namespace
}  // namespace nibble
