#include "rollout/reward/scorer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "rollout/reward/last_number.h"

namespace nibble {
namespace {

std::string last_number(const std::string& text) {
  const auto number = find_last_number(text);
  if (!number) return "none";
  const std::string digits = number->digits.empty() ? "0" : number->digits;
  return (number->is_negative ? "-" : "") + digits +
         (number->exponent == 0 ? "" : "e" + std::to_string(number->exponent));
}

TEST(FindLastNumber, ReadsNumbersAsPeopleWriteThem) {
  EXPECT_EQ(last_number("first 3, then 42."), "42");
  EXPECT_EQ(last_number("The total is $1,234,567.50!"), "12345675e-1");
  EXPECT_EQ(last_number("x = -17"), "-17");
  EXPECT_EQ(last_number("x = \xe2\x88\x92"
                        "17"),
            "-17");
  EXPECT_EQ(last_number("12-5"), "5");
  EXPECT_EQ(last_number("(3)-5"), "5");
  EXPECT_EQ(last_number("+7"), "7");
  EXPECT_EQ(last_number("about .250"), "25e-2");
  EXPECT_EQ(last_number("-.5"), "-5e-1");
  EXPECT_EQ(last_number("2.5e3"), "25e2");
  EXPECT_EQ(last_number("2e"), "2");
  EXPECT_EQ(last_number("1,2,3"), "3");
  EXPECT_EQ(last_number("1,234,5678"), "5678");
  EXPECT_EQ(last_number("12345,678"), "678");
  EXPECT_EQ(last_number("-0.00"), "0");
  EXPECT_EQ(last_number("007"), "7");
  EXPECT_EQ(last_number("50% of 3/4"), "4");
  EXPECT_EQ(last_number("no digits. - , ."), "none");
  EXPECT_EQ(last_number(""), "none");
}

TEST(FindLastNumber, StaysLinearOnHostileText) {
  const Stopwatch watch;
  for (const std::string unit : {"1,234", ",234", "1.", ".1", "-", "1e", "9", "1-"}) {
    std::string text;
    while (text.size() < (1 << 20)) text += unit;
    find_last_number(text);
  }
  EXPECT_LT(watch.elapsed_ms(), 5'000);
}

TEST(LastNumberScorer, ComparesValuesNotSpellings) {
  const auto scorer = make_scorer("last_number");
  EXPECT_EQ(scorer->score("I get 1,000.0", "1000"), 1);
  EXPECT_EQ(scorer->score("I get 1000", 1000), 1);
  EXPECT_EQ(scorer->score("0.10", 0.1), 1);
  EXPECT_EQ(scorer->score("#### 72", "so he sold 48+24 = 72\n#### 72"), 1);
  EXPECT_EQ(scorer->score("1000 or 1001", 1000), 0);
  EXPECT_EQ(scorer->score("100000000000000000000000000001", "100000000000000000000000000000"), 0);
  EXPECT_EQ(scorer->score("-5", 5), 0);
  EXPECT_EQ(scorer->score("", 5), 0);
}

TEST(ExactScorer, ComparesTrimmedText) {
  const auto scorer = make_scorer("exact");
  EXPECT_EQ(scorer->score("  yes\n", "yes "), 1);
  EXPECT_EQ(scorer->score("Yes", "yes"), 0);
  EXPECT_EQ(scorer->score("7", 7), 1);
}

TEST(GymScorer, ScoresTheTaggedAnswer) {
  const Json label = {{"task", "gcd"}, {"answer", "11"}, {"metadata", Json::object()}};
  const auto scorer = make_scorer("reasoning_gym");
  EXPECT_EQ(scorer->score("Let me think: 407 = 11 * 37. <answer> 11 </answer>", label), 1);
  EXPECT_EQ(scorer->score("11", label), 1);
  EXPECT_EQ(scorer->score("it's 11", label), 0.2857142857142857);
}

TEST(Scorers, RefuseWhatTheyCannotScore) {
  const std::string too_long(kMaxResponseBytes + 1, '1');
  for (const char* type : {"last_number", "exact", "reasoning_gym", "math", "math_miles",
                           "deepscaler", "dapo", "gpqa", "ifbench"}) {
    EXPECT_THROW(make_scorer(type)->score("1", nullptr), Error) << type;
    EXPECT_THROW(make_scorer(type)->score("1", Json::array({1})), Error) << type;
    EXPECT_THROW(make_scorer(type)->score(too_long, "1"), Error) << type;
  }
  EXPECT_THROW(make_scorer("last_number")->score("1", "one"), Error);
}

TEST(MakeScorer, NamesTheKnownTypes) {
  try {
    make_scorer("last_nubmer");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(error.what(), testing::HasSubstr("last_number, exact, reasoning_gym"));
  }
}

TEST(Scorer, ALabelThatLostDigitsIsRefusedAndOneThatKeptThemCounts) {
  const auto scorer = make_scorer("last_number");
  const auto label = [](const char* text) { return Json::parse(text); };
  for (const char* text :
       {"18446744073709551617", "0.1234567890123456789", "123456789.123456789"}) {
    try {
      scorer->score(text, label(text));
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_THAT(error.what(), ::testing::HasSubstr("as a string"));
    }
    EXPECT_EQ(scorer->score(text, Json(text)), 1) << "as a string every digit counts";
  }
  for (const char* text : {"18446744073709551615", "-9223372036854775808", "0.1", "2.5e3", "1e300",
                           "0.123456789012345", "3.0"}) {
    EXPECT_EQ(scorer->score(text, label(text)), 1) << text;
  }
}

}  // namespace
}  // namespace nibble
