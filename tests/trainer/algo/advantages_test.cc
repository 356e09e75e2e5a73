#include "trainer/algo/advantages.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "core/base/error.h"
#include "tests/trainer/algo/near.h"

namespace nibble {
namespace {

std::vector<double> advantages_of(const std::vector<double>& rewards,
                                  const AdvantageConfig& config) {
  std::vector<double> advantages(rewards.size());
  group_advantages(rewards, config, advantages);
  return advantages;
}

TEST(GroupAdvantages, MatchesTheOracle) {
  const Json fixture = rl_fixture("advantages.json");
  int num_groups = 0;
  for (const Json& group : fixture) {
    if (group["kind"] != "group") continue;
    ++num_groups;
    const auto rewards = group["rewards"].get<std::vector<double>>();
    const std::vector<std::pair<std::string, AdvantageConfig>> types = {
        {"grpo", {AdvantageType::kGrpo, true}},
        {"dr_grpo", {AdvantageType::kGrpo, false}},
        {"rloo", {AdvantageType::kRloo, true}}};
    for (const auto& [name, config] : types) {
      const auto expected = group[name].get<std::vector<double>>();
      const auto actual = advantages_of(rewards, config);
      ASSERT_EQ(actual.size(), expected.size());
      for (size_t i = 0; i < actual.size(); ++i) {
        expect_near_double(actual[i], expected[i], name + " of " + group["name"].dump());
      }
    }
    EXPECT_EQ(has_nonzero_std(rewards), group["filter_nonzero_std"].get<bool>()) << group["name"];
  }
  EXPECT_EQ(num_groups, 8);
}

TEST(GroupAdvantages, RefusesEmptyGroupsAndRewardsThatAreNotFinite) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(advantages_of({}, {}), Error);
  EXPECT_THROW(advantages_of({1, kNan}, {}), Error);
  EXPECT_THROW(has_nonzero_std(std::vector<double>{kNan, 1}), Error);
  std::vector<double> too_short(1);
  EXPECT_THROW(group_advantages(std::vector<double>{1, 2}, {}, too_short), Error);
}

}  // namespace
}  // namespace nibble
