// Answers made to exhaust a verifier. Work is counted in allocations, which are the same on every
// machine, not in time: what is built here is built of nodes, strings and long integers.
#include <gtest/gtest.h>

#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "rollout/reward/math/evaluate.h"
#include "rollout/reward/math/latex_parser.h"
#include "rollout/reward/math/math_answer.h"
#include "rollout/reward/math/math_limits.h"
#include "tests/rollout/reward/math/allocation_count.h"

namespace nibble::math {
namespace {

constexpr int64_t kMaxAllocations = 200'000;

std::string repeated(const std::string& unit, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += unit;
  return text;
}

std::string nested(const std::string& open, const std::string& close, int depth) {
  return repeated(open, depth) + "5" + repeated(close, depth);
}

std::string matrix_of(int rows, int columns) {
  std::string text = "\\begin{pmatrix}";
  for (int i = 0; i < rows * columns; ++i) text += i % columns == columns - 1 ? "1\\\\" : "1&";
  return text + "\\end{pmatrix}";
}

/// The verdict, within the allowance; a response is never an error.
bool accepts(const std::string& response, const std::string& label) {
  const int64_t before = allocation_count();
  const bool accepted = is_right_answer(response, label);
  EXPECT_LE(allocation_count() - before, kMaxAllocations) << response.substr(0, 80);
  return accepted;
}

std::vector<std::string> bombs() {
  std::vector<std::string> texts = {
      "10^{10^{10}}",
      "9^{9^{9^{9}}}",
      "9^9^9^9^9^9",
      "99999999^{99999999}",
      "(10^9)!",
      "100000!",
      "5!!!!!!!!",
      "2^{1000000}",
      "1E999999999",
      "1e999999999",
      "\\frac{1}{10^{-99999999}}",
      "\\sum_{n=1}^{10^{12}} n",
      "\\prod_{k=1}^{1000000} k",
      "\\sum_{a=1}^{999}\\sum_{b=1}^{999}\\sum_{c=1}^{999}\\sum_{d=1}^{999} a",
      "\\sum_{n=1}^{900} n^{n^n}",
      "\\binom{10^9}{10^8}",
      "\\binom{1000}{500}",
      "x^{x^{x^{x^{x}}}}",
      "(x+y+z)^{100000}",
      "\\gcd(10^{1000},10^{999})",
      matrix_of(60, 60),
      matrix_of(1, 2000),
      "(1+x)^{1000}(1-x)^{1000}",
      "\\log_{1}{5}",
      "0^{-1}",
      "\\infty-\\infty",
      "\\infty^\\infty",
  };
  for (const int depth : {30, 100, 1'000, 20'000}) {
    texts.push_back(nested("(", ")", depth));
    texts.push_back(nested("{", "}", depth));
    texts.push_back(nested("\\sqrt{", "}", depth));
    texts.push_back(nested("\\frac{1}{", "}", depth));
    texts.push_back(nested("x^{", "}", depth));
    texts.push_back(nested("f(", ")", depth));
    texts.push_back(nested("\\{", "\\}", depth));
    texts.push_back(nested("|", "|", depth));
    texts.push_back(nested("\\sin(", ")", depth));
  }
  for (const std::string unit : {"1,",
                                 "9",
                                 "-",
                                 "2^",
                                 "x",
                                 "1+",
                                 "1/",
                                 "2\\cdot",
                                 "\\pm1,",
                                 "(",
                                 "[1,2]\\cup",
                                 "\\frac",
                                 "\\sqrt",
                                 "1<",
                                 "x=",
                                 "\\text{a}",
                                 "!",
                                 "'",
                                 "^T",
                                 "_1",
                                 "99999999999999999999*",
                                 "123456789/987654321+",
                                 "d",
                                 "\\begin{pmatrix}",
                                 "\\in",
                                 "{,}",
                                 "\\boxed{",
                                 "e^{",
                                 "\\frac{1}{2}{",
                                 "x_{",
                                 "1E9+",
                                 "\\left(",
                                 "%",
                                 "\\\\",
                                 "\xe2\x88\x9a"}) {
    for (const int count : {200, 2'000, 20'000}) texts.push_back(repeated(unit, count) + "1");
  }
  return texts;
}

TEST(MathBombs, EndAsNotEqualWithinTheAllowance) {
  for (const std::string& bomb : bombs()) {
    EXPECT_FALSE(accepts("\\boxed{" + bomb + "}", "7")) << bomb.substr(0, 80);
    EXPECT_FALSE(accepts("The answer is $" + bomb + "$", "7")) << bomb.substr(0, 80);
    EXPECT_FALSE(accepts(bomb, "x^2+7")) << bomb.substr(0, 80);
  }
}

TEST(MathBombs, WholeResponsesStayBoundedToo) {
  for (const std::string unit : {"$",          "\\( ",     "\\[ ",           "$$ ",
                                 " [",         "answer ",  "answer: $",      "final answer is ",
                                 "\\boxed{1}", "\\boxed{", "\\fbox{1}",      "1 ",
                                 "= ",         "1+ ",      "\\frac{1}{2} ",  "$1$, ",
                                 "is ",        "1,234 ",   "answer is 1 = ", "\n",
                                 "}",          "{"}) {
    EXPECT_FALSE(accepts(repeated(unit, static_cast<int>((1 << 20) / unit.size())), "x^2+7"))
        << unit;
  }
}

TEST(MathBombs, ALabelMayBeOneWithoutBeingAnError) {
  for (const std::string& bomb : bombs()) {
    if (bomb.size() > kMaxLatexBytes) continue;
    EXPECT_FALSE(accepts("\\boxed{123}", bomb)) << bomb.substr(0, 80);
  }
  EXPECT_TRUE(accepts("\\boxed{10^{10^{10}}}", "10^{10^{10}}"));
}

TEST(MathBombs, EvaluationStopsAtItsStepLimit) {
  const auto sum = parse_latex("\\sum_{a=1}^{999}\\sum_{b=1}^{999} ab");
  ASSERT_TRUE(sum);
  EXPECT_FALSE(Evaluator(0).value(*sum).is_valid());
}

/// One random edit: a byte dropped, doubled, swapped or replaced, or a piece of another text.
std::string mutated(std::string text, const std::string& other, std::mt19937& random) {
  constexpr std::string_view kBytes = "\\{}()[]^_$,;=|%&!<>0123456789.+-*/ exdfi\n\xe2\x88";
  const auto below = [&](size_t limit) { return random() % (limit == 0 ? 1 : limit); };
  const int edits = 1 + static_cast<int>(below(6));
  for (int edit = 0; edit < edits; ++edit) {
    const size_t at = below(text.size() + 1);
    switch (below(5)) {
      case 0:
        text.erase(at, 1 + below(4));
        break;
      case 1:
        text.insert(at, 1, kBytes[below(kBytes.size())]);
        break;
      case 2:
        if (at < text.size()) text[at] = kBytes[below(kBytes.size())];
        break;
      case 3:
        text.insert(at, text.substr(below(text.size()), 1 + below(12)));
        break;
      default:
        text.insert(at, other.substr(below(other.size()), 1 + below(20)));
    }
  }
  return text;
}

TEST(MathMutations, NeitherCrashNorExceedTheAllowance) {
  std::vector<std::string> responses;
  std::vector<std::string> labels;
  for (const char* name : {"math.jsonl", "math_more.jsonl"}) {
    std::istringstream text(
        read_file(std::string(NIBBLE_SOURCE_DIR "/tests/oracles/rewards/") + name, 16 << 20));
    for (std::string line; std::getline(text, line);) {
      const Json row = parse_json(line, name);
      if (row["gold"] == "") continue;
      labels.push_back(row["gold"]);
      responses.push_back(row["response"]);
    }
  }
  std::mt19937 random(20'261'129);
  for (int round = 0; round < 8; ++round) {
    for (size_t i = 0; i < responses.size(); ++i) {
      const size_t other = random() % responses.size();
      const std::string response = mutated(responses[i], responses[other], random);
      (void)accepts(response, labels[i]);
      const std::string label = mutated(labels[i], labels[other], random);
      try {
        (void)accepts(responses[i], label);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << label;
      }
    }
  }
}

}  // namespace
}  // namespace nibble::math
