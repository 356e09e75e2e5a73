// Verdicts beside those of math-verify 0.9.0 (tests/oracles/rewards/README.md).
#include <gtest/gtest.h>

#include <cstdio>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "rollout/reward/math/math_answer.h"

namespace nibble::math {
namespace {

struct Case {
  int id = 0;
  std::string split;
  std::string gold;
  std::string response;
  bool verdict = false;  // of math-verify
};

struct Agreement {
  int cases = 0;
  int false_accepts = 0;
  int false_rejects = 0;
  std::set<int> differing;  // ids
  double share() const {
    return static_cast<double>(cases - false_accepts - false_rejects) / cases;
  }
};

std::vector<Case> read_cases(const std::string& name) {
  std::istringstream text(
      read_file(std::string(NIBBLE_SOURCE_DIR "/tests/oracles/rewards/") + name, 16 << 20));
  std::vector<Case> cases;
  for (std::string line; std::getline(text, line);) {
    const Json row = parse_json(line, name);
    const Json& verdict = row["math_verify"];
    cases.push_back({row["id"], row.value("split", ""), row["gold"], row["response"],
                     verdict.is_object() ? verdict["verdict"] : verdict});
  }
  return cases;
}

bool accepts(const Case& c) {
  try {
    return is_right_answer(c.response, c.gold);
  } catch (const Error& error) {
    EXPECT_EQ(c.gold, "") << error.what();  // the one label that is refused
    return false;
  }
}

Agreement measure(const std::vector<Case>& cases, const std::string& split) {
  Agreement result;
  for (const Case& c : cases) {
    if (!split.empty() && c.split != split) continue;
    ++result.cases;
    const bool accepted = accepts(c);
    if (accepted == c.verdict) continue;
    ++(accepted ? result.false_accepts : result.false_rejects);
    result.differing.insert(c.id);
  }
  std::printf("agreement=%.2f%% cases=%d false_accepts=%d false_rejects=%d\n", 100 * result.share(),
              result.cases, result.false_accepts, result.false_rejects);
  return result;
}

void expect_agreement(const Agreement& agreement) {
  EXPECT_GE(agreement.share(), 0.97);
  EXPECT_LE(agreement.false_accepts, 0.01 * agreement.cases);
}

// Both are right answers: math-verify takes every symbol for complex where an "i" stands alone, so
// that "3i" and "3 i" have different ones.
TEST(MathAgreement, OfTheFixtureIsAbove97Percent) {
  const Agreement agreement = measure(read_cases("math.jsonl"), "");
  expect_agreement(agreement);
  EXPECT_EQ(agreement.differing, (std::set<int>{195}));  // 3i, 3 i
}

TEST(MathAgreement, OfOtherCasesIsAbove97Percent) {
  const auto cases = read_cases("math_more.jsonl");
  ASSERT_GE(cases.size(), 300u);
  expect_agreement(measure(cases, "dev"));
  expect_agreement(measure(cases, "test"));
  const Agreement all = measure(cases, "");
  EXPECT_EQ(all.differing, (std::set<int>{402, 407}));  // 3+4i, 3+4 i; -i, -1i
}

TEST(MathAgreement, EveryLabelIsItsOwnAnswer) {
  for (const Case& c : read_cases("math_more.jsonl")) {
    EXPECT_TRUE(is_right_answer("It is \\boxed{" + c.gold + "}", c.gold)) << c.gold;
  }
}

}  // namespace
}  // namespace nibble::math
