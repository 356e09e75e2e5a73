// math_miles, deepscaler and dapo beside the verdicts of the rules' own code
// (tests/oracles/rewards/README.md).
#include <gtest/gtest.h>

#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/file.h"
#include "rollout/reward/dapo.h"
#include "rollout/reward/miles/miles_math.h"
#include "rollout/reward/scorer.h"

namespace nibble {
namespace {

std::vector<Json> read_cases() {
  std::istringstream text(
      read_file(NIBBLE_SOURCE_DIR "/tests/oracles/rewards/math.jsonl", 16 << 20));
  std::vector<Json> cases;
  for (std::string line; std::getline(text, line);) cases.push_back(parse_json(line, "math.jsonl"));
  return cases;
}

/// Counts how often a rule says what its own code says.
struct Agreement {
  int cases = 0;
  int false_accepts = 0;
  int false_rejects = 0;

  void add(bool accepted, bool verdict) {
    ++cases;
    false_accepts += accepted && !verdict ? 1 : 0;
    false_rejects += !accepted && verdict ? 1 : 0;
  }
  int differing() const { return false_accepts + false_rejects; }
  void print(const char* name) const {
    std::printf("%s cases=%d false_accepts=%d false_rejects=%d\n", name, cases, false_accepts,
                false_rejects);
  }
};

bool accepts(const Scorer& scorer, const std::string& response, const Json& gold) {
  try {
    return scorer.score(response, gold) == 1;
  } catch (const Error& error) {
    EXPECT_EQ(gold, "") << error.what();  // the one label that is refused
    return false;
  }
}

TEST(MilesMath, GivesTheVerdictsOfTheRulesOwnCode) {
  const auto scorer = make_scorer("math_miles");
  Agreement by_text;       // decided by the normalizations
  Agreement symbolically;  // needed SymPy
  for (const Json& c : read_cases()) {
    const bool is_sympy = c["math"]["path"] == "sympy";
    const bool accepted = accepts(*scorer, c["response"], c["gold"]);
    (is_sympy ? symbolically : by_text).add(accepted, c["math"]["verdict"]);
    if (!is_sympy) {
      EXPECT_EQ(accepted, c["math"]["verdict"].get<bool>()) << c;
    }
  }
  by_text.print("math_miles by text");
  symbolically.print("math_miles by sympy");
  EXPECT_GE(by_text.cases, 300);
  EXPECT_GE(symbolically.cases, 30);
  EXPECT_LE(symbolically.differing(), symbolically.cases / 10);
}

TEST(Deepscaler, GivesTheVerdictsOfTheRulesOwnCode) {
  const auto scorer = make_scorer("deepscaler");
  Agreement plain;
  Agreement thought;
  for (const Json& c : read_cases()) {
    if (c["math"]["path"] == "sympy") continue;
    const std::string response = c["response"];
    plain.add(accepts(*scorer, response, c["gold"]), c["deepscaler_plain"]["verdict"]);
    const std::string thinking = "<think>Perhaps \\boxed{-987654321}.</think>";
    thought.add(accepts(*scorer, thinking + response, c["gold"]), c["deepscaler_think"]["verdict"]);
  }
  plain.print("deepscaler without thinking");
  thought.print("deepscaler with thinking");
  EXPECT_GE(thought.cases, 300);
  EXPECT_EQ(plain.differing(), 0);
  EXPECT_EQ(thought.differing(), 0);
}

TEST(Deepscaler, LooksAtWhatFollowsTheThinkingAlone) {
  EXPECT_EQ(miles::behind_thinking("a</think>b</think>c"), "c");
  EXPECT_EQ(miles::behind_thinking("a###Responseb"), "b");
  EXPECT_EQ(miles::behind_thinking("a###Responseb###Responsec"), "b");
  EXPECT_EQ(miles::behind_thinking("\\boxed{4}"), "");
  const auto scorer = make_scorer("deepscaler");
  EXPECT_EQ(scorer->score("\\boxed{4}", "4"), 0);
  EXPECT_EQ(scorer->score("\\boxed{4}</think>", "4"), 0);
  EXPECT_EQ(scorer->score("\\boxed{5}</think>\\boxed{4}", "4"), 1);
  EXPECT_EQ(scorer->score("hm ###Response\\boxed{4}", "4"), 1);
}

TEST(Dapo, GivesTheScoreAndTheAnswerOfTheRulesOwnCode) {
  const auto scorer = make_scorer("dapo");
  int num_scored = 0;
  int num_refused = 0;
  for (const Json& c : read_cases()) {
    const std::string response = c["response"];
    if (c["dapo"].contains("error")) {
      EXPECT_THROW(scorer->score(response, c["gold"]), Error) << c;
      ++num_refused;
      continue;
    }
    EXPECT_EQ(scorer->score(response, c["gold"]), c["dapo"]["score"].get<double>()) << c;
    EXPECT_EQ(dapo_answer(response), c["dapo"]["pred"].get<std::string>()) << c;
    ++num_scored;
  }
  EXPECT_GE(num_scored, 100);
  EXPECT_GE(num_refused, 100);
}

TEST(Dapo, LooksAtTheLast300CharactersAlone) {
  const auto scorer = make_scorer("dapo");
  const std::string answer = "Answer: 34";
  EXPECT_EQ(scorer->score(answer, "34"), 1);
  EXPECT_EQ(scorer->score(answer, 34), 1);
  EXPECT_EQ(scorer->score(answer, "35"), -1);
  EXPECT_EQ(scorer->score("\\boxed{34}", "34"), -1);
  std::string behind(290, '\n');
  EXPECT_EQ(scorer->score(answer + behind, "34"), 1);
  EXPECT_EQ(scorer->score(answer + behind + "\n", "34"), -1);
  std::string wide;  // characters, not bytes
  for (int i = 0; i < 289; ++i) wide += "\xc3\xa9";
  EXPECT_EQ(scorer->score(answer + "\n" + wide, "34"), 1);
}

TEST(IncumbentRules, AreBoundedWhateverTheAnswerIs) {
  for (const std::string unit :
       {"(",        "{",  "\\sqrt{", "\\frac{", "\\text{", "-",        "!",   "^",
        "9",        ",",  "1,",      "x^",      "sqrt(",   "9!",       "2**", "=",
        "\\boxed{", "\\", "$",       "/",       "million", "degrees^9"}) {
    std::string bomb;
    while (bomb.size() + unit.size() <= 4'000) bomb += unit;
    for (const char* type : {"math_miles", "deepscaler", "dapo"}) {
      const auto scorer = make_scorer(type);
      const double wrong = std::string_view(type) == "dapo" ? -1 : 0;
      EXPECT_EQ(scorer->score("</think>\\boxed{" + bomb + "}\nAnswer: " + bomb, "7"), wrong)
          << type << " " << unit;
    }
  }
}

TEST(MilesMath, ALongAnswerIsWrongAndALongLabelIsRefused) {
  const auto scorer = make_scorer("math_miles");
  const std::string long_text(5'000, '1');
  EXPECT_EQ(scorer->score("\\boxed{" + long_text + "}", "1"), 0);
  EXPECT_THROW(scorer->score("\\boxed{1}", long_text), Error);
  EXPECT_THROW(scorer->score("\\boxed{1}", ""), Error);
  EXPECT_THROW(scorer->score("\\boxed{1}", "\\boxed{1"), Error);
}

}  // namespace
}  // namespace nibble
