#include "rollout/reward/math/math_answer.h"

#include <gtest/gtest.h>

#include <string>

#include "core/base/error.h"
#include "rollout/reward/math/answer_extraction.h"

namespace nibble::math {
namespace {

bool equal(const std::string& label, const std::string& answer) {
  return is_right_answer("So it is \\boxed{" + answer + "}.", label);
}

std::string text_of(const std::string& response) { return extract_answer(response).text; }

TEST(ExtractAnswer, TakesTheLastOfTheStrongestHints) {
  EXPECT_EQ(text_of("The final answer is $7$. I hope it is correct. \\boxed{8}"), "7");
  EXPECT_EQ(text_of("Answer: 6, as \\boxed{7} says"), "7");
  EXPECT_EQ(text_of("Answer: 6, not 7"), "6");
  EXPECT_EQ(text_of("first 3, then 4"), "4");
  EXPECT_EQ(text_of("first $3$, then $4$."), "4");
  EXPECT_EQ(text_of("3 + 4"), "3 + 4");
  EXPECT_EQ(text_of("nothing"), "");
  EXPECT_EQ(text_of(""), "");
}

TEST(ExtractAnswer, SkipsWhatItCannotRead) {
  EXPECT_TRUE(is_right_answer("\\boxed{???} but the answer is 5", "5"));
  EXPECT_FALSE(is_right_answer("\\boxed{4} but the answer is 5", "5"));
}

TEST(ExtractAnswer, JoinsBoxesThatStandTogether) {
  EXPECT_TRUE(is_right_answer("\\boxed{1} and \\boxed{3}", "1,3"));
  const std::string far(200, 'x');
  EXPECT_TRUE(is_right_answer("\\boxed{1} " + far + " \\boxed{3}", "3"));
}

TEST(MathAnswer, ExactNumbersKeepEveryDigit) {
  const std::string long_number = "123456789012345678901234567890";
  EXPECT_TRUE(equal(long_number, "123,456,789,012,345,678,901,234,567,890"));
  EXPECT_FALSE(equal(long_number, "123456789012345678901234567891"));
  EXPECT_TRUE(equal("2^{200}", "4^{100}"));
  EXPECT_FALSE(equal("2^{200}", "2^{200}+1"));
  EXPECT_TRUE(equal("\\frac{1}{3}", "0.333333"));
  EXPECT_FALSE(equal("\\frac{1}{3}", "0.33333"));
  EXPECT_FALSE(equal("1", "1.0000001"));
}

TEST(MathAnswer, PolynomialsAreComparedAsSuch) {
  EXPECT_TRUE(equal("(x+y)^8", "(y+x)^8"));
  EXPECT_TRUE(equal("x^2-y^2", "(x-y)(x+y)"));
  EXPECT_FALSE(equal("x^2-y^2", "(x-y)(x+y)+10^{-30}"));
  EXPECT_FALSE(equal("x", "y"));
  EXPECT_FALSE(equal("\\sqrt{x^2}+0", "x+0"));
}

TEST(MathAnswer, AValueCountsBesideItsEquation) {
  EXPECT_TRUE(equal("x = 3", "3"));
  EXPECT_TRUE(equal("3", "x = 3"));
  EXPECT_FALSE(equal("x = 3", "y = 3"));
  EXPECT_TRUE(equal("3x+4y=12", "6x+8y=24"));
  EXPECT_FALSE(equal("3x+4y=12", "3x+4y=13"));
}

TEST(MathAnswer, OrderCountsInTuplesOnly) {
  EXPECT_TRUE(equal("\\{1,2,3\\}", "3,2,1"));
  EXPECT_FALSE(equal("(1,2,3)", "(3,2,1)"));
  EXPECT_FALSE(equal("[1,2)", "[1,2]"));
  EXPECT_TRUE(equal("x > 2", "(2,\\infty)"));
  EXPECT_FALSE(equal("x > 2", "[2,\\infty)"));
}

TEST(MathAnswer, ALabelThatIsNoneIsRefused) {
  for (const std::string& label : {std::string(), std::string("  "), std::string(5000, '1')}) {
    try {
      is_right_answer("\\boxed{1}", label);
      ADD_FAILURE() << "scored beside a label of " << label.size() << " bytes";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    }
  }
}

TEST(MathAnswer, TextIsComparedAsWords) {
  EXPECT_TRUE(equal("\\text{Monday}", "Monday"));
  EXPECT_FALSE(equal("\\text{Monday}", "Tuesday"));
  EXPECT_TRUE(equal("\\text{(B)}", "B"));
  EXPECT_FALSE(equal("\\text{(B)}", "C"));
}

}  // namespace
}  // namespace nibble::math
