// Advantages of tokens, normalized over a batch: REINFORCE++, its baseline form, GAE.
#include <gtest/gtest.h>

#include <vector>

#include "core/base/error.h"
#include "tests/trainer/algo/near.h"
#include "tests/trainer/algo/policy_case.h"
#include "trainer/algo/advantages.h"
#include "trainer/algo/gae.h"
#include "trainer/algo/kl.h"
#include "trainer/algo/reinforce_pp.h"
#include "trainer/algo/whiten.h"

namespace nibble {
namespace {

// A case of advantages.json, its samples packed.
struct Sequences {
  explicit Sequences(const Json& from)
      : json(from),
        rewards(json["rewards"].get<std::vector<double>>()),
        kl(flatten(json["kl"])),
        values(flatten(json["values"])),
        kl_coef(json["kl_coef"]),
        gamma(json["gamma"]) {
    for (const double counts : flatten(json["mask"])) mask.push_back(counts != 0 ? 1 : 0);
    for (const Json& row : json["mask"]) {
      begin.push_back(begin.back() + static_cast<int64_t>(row.size()));
    }
  }
  std::vector<double> tokens() const { return std::vector<double>(mask.size(), -99.0); }
  TokenRewards token_rewards() const { return {rewards, kl, mask, begin}; }

  const Json& json;
  std::vector<double> rewards, kl, values;
  double kl_coef, gamma;
  std::vector<uint8_t> mask;
  std::vector<int64_t> begin = {0};
};

std::vector<Sequences> sequence_cases(const Json& fixture) {
  std::vector<Sequences> cases;
  for (const Json& json : fixture) {
    if (json["kind"] == "sequences") cases.emplace_back(json);
  }
  EXPECT_EQ(cases.size(), 4u);
  return cases;
}

void expect_tokens(const std::vector<double>& actual, const Sequences& from, const char* key) {
  const std::vector<double> expected = flatten(from.json[key]);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    expect_near_double(actual[i], expected[i],
                       std::string(key) + " of " + from.json["name"].dump());
  }
}

std::vector<double> whitened(std::vector<double> values, const std::vector<uint8_t>& mask) {
  const MaskedSums sums = masked_sums(values, mask);
  whiten(values, sums, masked_squares(values, mask, sums.mean()));
  return values;
}

TEST(ReinforcePp, MatchesTheOracle) {
  const Json fixture = rl_fixture("advantages.json");
  int num_cases = 0;
  for (const Sequences& from : sequence_cases(fixture)) {
    if (!from.json.contains("reinforce_pp_returns")) continue;
    ++num_cases;
    std::vector<double> returns = from.tokens();
    reinforce_pp_returns(from.token_rewards(), from.kl_coef, from.gamma, returns);
    expect_tokens(returns, from, "reinforce_pp_returns");
    expect_tokens(whitened(returns, from.mask), from, "reinforce_pp_advantages_whitened");
  }
  EXPECT_EQ(num_cases, 3);
}

TEST(ReinforcePpBaseline, MatchesTheOracle) {
  const Json fixture = rl_fixture("advantages.json");
  AdvantageConfig config;
  config.type = AdvantageType::kReinforcePpBaseline;
  for (Sequences& from : sequence_cases(fixture)) {
    std::vector<double> score(from.rewards.size());
    group_advantages(from.rewards, config, score);
    std::vector<double> advantages = from.tokens();
    reinforce_pp_baseline({score, from.kl, from.mask, from.begin}, from.kl_coef, advantages);
    expect_tokens(advantages, from, "reinforce_pp_baseline_advantages");
    expect_tokens(whitened(advantages, from.mask), from, "reinforce_pp_baseline_whitened");
  }
}

TEST(ReinforcePp, ScoresOfAGroupAreItsRewards) {
  const std::vector<double> rewards = {1, 0, 0.25};
  std::vector<double> score(3);
  AdvantageConfig config;
  config.type = AdvantageType::kReinforcePp;
  group_advantages(rewards, config, score);
  EXPECT_EQ(score, rewards);
  config.type = AdvantageType::kOpd;  // learns nothing from them
  group_advantages(rewards, config, score);
  EXPECT_EQ(score, (std::vector<double>{0, 0, 0}));
  config.type = AdvantageType::kGae;
  group_advantages(rewards, config, score);
  EXPECT_EQ(score, rewards);
}

TEST(ReinforcePp, PartsOfABatchAreWhitenedAsTheWhole) {
  const Json fixture = rl_fixture("advantages.json");
  const Sequences from = sequence_cases(fixture)[1];
  std::vector<double> whole = from.tokens();
  reinforce_pp_returns(from.token_rewards(), from.kl_coef, from.gamma, whole);
  const auto cut = static_cast<size_t>(from.begin[2]);
  const std::span<const uint8_t> mask(from.mask);
  std::vector<double> head(whole.begin(), whole.begin() + from.begin[2]);
  std::vector<double> tail(whole.begin() + from.begin[2], whole.end());
  const MaskedSums a = masked_sums(head, mask.first(cut));
  const MaskedSums b = masked_sums(tail, mask.subspan(cut));
  const MaskedSums sums{a.count + b.count, a.sum + b.sum};
  const double squares = masked_squares(head, mask.first(cut), sums.mean()) +
                         masked_squares(tail, mask.subspan(cut), sums.mean());
  whiten(head, sums, squares);
  whiten(tail, sums, squares);
  head.insert(head.end(), tail.begin(), tail.end());
  expect_tokens(head, from, "reinforce_pp_advantages_whitened");
}

TEST(ReinforcePp, RefusesSpansThatDoNotFit) {
  const std::vector<double> score = {1}, kl = {0.1};
  const std::vector<uint8_t> mask = {1, 1};
  const std::vector<int64_t> begin = {0, 2};
  std::vector<double> out(2), short_out(1);
  EXPECT_NO_THROW(reinforce_pp_returns({score, {}, mask, begin}, 0, 1, out));
  EXPECT_THROW(reinforce_pp_returns({score, kl, mask, begin}, 0, 1, out), Error);
  EXPECT_THROW(reinforce_pp_baseline({score, {}, mask, begin}, 0, short_out), Error);
  EXPECT_THROW(reinforce_pp_returns({{}, {}, mask, begin}, 0, 1, out), Error);
  EXPECT_THROW(masked_sums(out, std::span(mask).first(1)), Error);
}

TEST(Whiten, OneValueAndNoneStayFinite) {
  std::vector<double> one = {3};
  EXPECT_EQ(whitened(one, {1}), std::vector<double>{0});
  EXPECT_TRUE(std::isfinite(whitened(one, {0})[0]));
}

TEST(Gae, MatchesTheOracle) {
  const Json fixture = rl_fixture("advantages.json");
  for (const Sequences& from : sequence_cases(fixture)) {
    // The rewards of the tokens: those of REINFORCE++ without discount, one token at a time.
    std::vector<double> reward = from.tokens();
    for (size_t s = 0; s < from.rewards.size(); ++s) {
      int64_t last = -1;
      for (int64_t i = from.begin[s]; i < from.begin[s + 1]; ++i) {
        const auto at = static_cast<size_t>(i);
        reward[at] = -from.kl_coef * from.kl[at];
        if (from.mask[at] != 0) last = i;
      }
      if (last >= 0) reward[static_cast<size_t>(last)] += from.rewards[s];
    }
    std::vector<double> advantages = from.tokens(), returns = from.tokens();
    gae({reward, from.values, from.mask, from.begin}, from.gamma, from.json["lam"], advantages,
        returns);
    expect_tokens(advantages, from, "gae_advantages");
    expect_tokens(returns, from, "gae_returns");
    expect_tokens(whitened(advantages, from.mask), from, "gae_whitened");
  }
}

TEST(Gae, RefusesSpansThatDoNotFit) {
  const std::vector<double> two = {1, 2};
  const std::vector<uint8_t> mask = {1, 1};
  const std::vector<int64_t> begin = {0, 2};
  std::vector<double> out(2), short_out(1);
  EXPECT_THROW(gae({two, two, mask, begin}, 1, 1, out, short_out), Error);
  EXPECT_THROW(gae({two, {}, mask, begin}, 1, 1, out, out), Error);
}

}  // namespace
}  // namespace nibble
