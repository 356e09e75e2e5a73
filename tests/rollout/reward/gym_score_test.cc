#include "rollout/reward/gym_score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "rollout/reward/arithmetic.h"

namespace nibble {
namespace {

std::vector<Json> read_lines(const std::string& name) {
  std::istringstream text(
      read_file(std::string(NIBBLE_SOURCE_DIR "/tests/oracles/rewards/") + name, 16 << 20));
  std::vector<Json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(parse_json(line, name));
  return lines;
}

TEST(GymScore, MatchesTheLibraryOnEveryCandidate) {
  std::map<std::pair<std::string, int>, Json> items;
  for (Json& item : read_lines("gym_eval.jsonl")) {
    items[{item["task"], item["index"]}] = item;
  }
  const auto candidates = read_lines("gym_scores.jsonl");
  ASSERT_EQ(candidates.size(), 1296u);
  for (const Json& candidate : candidates) {
    const Json& item = items.at({candidate["task"], candidate["index"]});
    const std::string answer = candidate["candidate"];
    if (candidate.contains("error")) {
      EXPECT_THROW(gym_score(item, answer), Error) << candidate;
    } else {
      EXPECT_NEAR(gym_score(item, answer), candidate["score"].get<double>(), 1e-9) << candidate;
    }
  }
}

TEST(GymScore, RightAnswersScoreOne) {
  int num_items = 0;
  for (const char* name : {"gym_train.jsonl", "gym_eval.jsonl"}) {
    for (const Json& item : read_lines(name)) {
      ++num_items;
      EXPECT_EQ(gym_score(item, item["answer"].get<std::string>()), 1) << item;
    }
  }
  EXPECT_EQ(num_items, 2200);
}

Json item_of(const std::string& task, const std::string& answer, const char* metadata = "{}") {
  return {{"task", task}, {"answer", answer}, {"metadata", parse_json(metadata, "test")}};
}

TEST(GymScore, PaysForNoTricks) {
  const Json sorting = item_of("number_sorting", "['1', '2']", R"({"direction": "ascending"})");
  EXPECT_EQ(gym_score(sorting, "['1', '2']"), 1);
  EXPECT_EQ(gym_score(sorting, "['nan', 'nan']"), 0);
  EXPECT_EQ(gym_score(sorting, "['inf', 'inf']"), 0);
  EXPECT_EQ(gym_score(sorting, "[[1], 2]"), 0);
  const Json countdown = item_of("countdown", "", R"({"numbers": [3, 4], "target": 50})");
  EXPECT_EQ(gym_score(countdown, "3*0 + 50e0 + 4*0"), 0.01);
  EXPECT_EQ(gym_score(countdown, "3 + 4"), 0.05);
}

TEST(GymScore, FactorsBeyond64BitsAreWrongNotUndefined) {
  const Json item = item_of("prime_factorization", "2 × 3");
  EXPECT_EQ(gym_score(item, "99999999999999999999999 × -99999999999999999999999"), 0.01);
  EXPECT_EQ(gym_score(item, "-9223372036854775808 × -9223372036854775808"), 0.01);
  EXPECT_EQ(gym_score(item, "6 × 1"), 0.5);
  EXPECT_EQ(gym_score(item, "-2 × -3"), 0.5);
  EXPECT_EQ(gym_score(item, "0 × 99999999999999999999999"), 0.01);
}

TEST(GymScore, RefusesMalformedItems) {
  EXPECT_THROW(gym_score("text", "1"), Error);
  EXPECT_THROW(gym_score(Json::object(), "1"), Error);
  EXPECT_THROW(gym_score(item_of("sudoku", "1"), "1"), Error);
  EXPECT_THROW(gym_score(item_of("countdown", "1"), "1"), Error);
  EXPECT_THROW(gym_score(item_of("countdown", "1", R"({"target": 1, "numbers": ["a"]})"), "1"),
               Error);
  EXPECT_THROW(gym_score(item_of("number_sorting", "x", R"({"direction": "ascending"})"), "1"),
               Error);
}

TEST(GymScore, StaysFastOnHostileAnswers) {
  const Stopwatch watch;
  const std::string metadata_of_all =
      R"({"numbers": [3], "target": 3, "direction": "ascending", "numerator": 2, "denominator": 4,
          "simplified_numerator": 1, "simplified_denominator": 2})";
  for (const char* task : {"chain_sum", "countdown", "number_sorting", "prime_factorization",
                           "fraction_simplification", "spell_backward", "gcd"}) {
    const Json item = item_of(task, task == std::string("number_sorting") ? "['1']" : "11",
                              metadata_of_all.c_str());
    for (const std::string unit :
         {"(", "[", "1", "-", "9**", "1,", "×", "{", "$", "\\frac{", "'"}) {
      std::string answer;
      while (answer.size() < (1 << 20)) answer += unit;
      try {
        const double score = gym_score(item, answer);
        EXPECT_GE(score, 0);
        EXPECT_LT(score, 1);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      }
    }
  }
  EXPECT_LT(watch.elapsed_ms(), 10'000);
}

TEST(ExtractGymAnswer, TakesTheLastClosedTag) {
  EXPECT_EQ(extract_gym_answer("so <answer>1</answer> no <answer> 2 </answer> <answer>3"), "2");
  EXPECT_EQ(extract_gym_answer(" 42 "), " 42 ");
  EXPECT_EQ(extract_gym_answer("<answer>42"), "<answer>42");
  EXPECT_EQ(extract_gym_answer("<answer></answer>"), "");
}

double value_of(const std::string& text) {
  const auto result = evaluate_arithmetic(text);
  return result ? result->value : std::nan("");
}

TEST(EvaluateArithmetic, FollowsPythonsPrecedence) {
  EXPECT_EQ(value_of("1 + 2*3 - 4/8"), 6.5);
  EXPECT_EQ(value_of("-2**2"), -4);
  EXPECT_EQ(value_of("2**3**2"), 512);
  EXPECT_EQ(value_of("2**-1"), 0.5);
  EXPECT_EQ(value_of("--3 * -(+4)"), -12);
  EXPECT_EQ(value_of("(1 +\n 2)"), 3);
  EXPECT_EQ(value_of(" .5 + 84. "), 84.5);
  EXPECT_EQ(evaluate_arithmetic("84.5*7")->integers, (std::vector<int64_t>{84, 5, 7}));
}

TEST(EvaluateArithmetic, RefusesWhatIsNoFiniteNumber) {
  for (const std::string text : {"",           "1 +",
                                 "1 2",        "(1",
                                 "1)",         "01",
                                 "1e3",        "1_0",
                                 "x",          "1 + \n2",
                                 "1/0",        "1/(2 - 2)",
                                 "0**-1",      "1/(1/3*3 - 1)",
                                 "9**9**9**9", "(-8)**0.5",
                                 "5!",         "1,2",
                                 "0x1",        ".",
                                 "1.2.3",      "1234567890123456789"}) {
    EXPECT_FALSE(evaluate_arithmetic(text)) << text;
  }
  EXPECT_FALSE(evaluate_arithmetic(std::string(200, '(') + "1" + std::string(200, ')')));
  EXPECT_FALSE(evaluate_arithmetic(std::string(200, '-') + "1"));
}

}  // namespace
}  // namespace nibble
