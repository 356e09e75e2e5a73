#include "rollout/reward/math/value.h"

#include <gtest/gtest.h>

#include "rollout/reward/math/functions.h"
#include "rollout/reward/math/math_limits.h"

namespace nibble::math {
namespace {

Value exact(int top, int bottom = 1) { return Value(quotient(top, bottom)); }

TEST(Value, ArithmeticOfRationalsIsExact) {
  const Value third = exact(1, 3);
  EXPECT_EQ(*(third + third + third).exact(), 1);
  EXPECT_EQ(*inverse(exact(-2, 3)).exact(), Rational(-3, 2));
  EXPECT_EQ(*power(exact(-2, 3), exact(-3)).exact(), Rational(-27, 8));
  EXPECT_TRUE(are_equal(power(exact(2), exact(1, 2)) * power(exact(2), exact(1, 2)), exact(2)));
}

TEST(Value, LongResultsBecomeApproximateAndOverflowsInvalid) {
  const Value big = power(exact(3), exact(1'500));
  EXPECT_TRUE(big.exact());
  EXPECT_FALSE((big * big).exact());
  EXPECT_TRUE((big * big).is_valid());
  EXPECT_FALSE(power(exact(10), power(exact(10), exact(10))).is_valid());
}

TEST(Value, WhatIsUndefinedIsNotValidAndEqualsNothing) {
  const Value infinity = Value::infinity(false);
  for (const Value& value :
       {inverse(exact(0)), power(exact(0), exact(0)), power(exact(0), exact(-1)),
        infinity + -infinity, infinity * exact(0), exact(1) + Value()}) {
    EXPECT_FALSE(value.is_valid());
    EXPECT_FALSE(are_equal(value, value));
  }
  EXPECT_TRUE(are_equal(infinity, infinity + exact(5)));
  EXPECT_FALSE(are_equal(infinity, -infinity));
}

TEST(ApplyFunction, KnowsItsDomain) {
  EXPECT_EQ(*apply_function("floor", {exact(-7, 2)}).exact(), -4);
  EXPECT_EQ(*apply_function("ceiling", {exact(-7, 2)}).exact(), -3);
  EXPECT_EQ(*apply_function("factorial", {exact(5)}).exact(), 120);
  EXPECT_EQ(*apply_function("binomial", {exact(10), exact(3)}).exact(), 120);
  EXPECT_EQ(*apply_function("mod", {exact(-7), exact(3)}).exact(), 2);
  EXPECT_EQ(*apply_function("gcd", {exact(12), exact(-18)}).exact(), 6);
  EXPECT_TRUE(are_equal(apply_function("log", {exact(8), exact(2)}), exact(3)));
  EXPECT_FALSE(apply_function("factorial", {exact(-1)}).is_valid());
  EXPECT_FALSE(apply_function("factorial", {exact(1'000'000)}).is_valid());
  EXPECT_FALSE(apply_function("log", {exact(0), exact(2)}).is_valid());
  EXPECT_FALSE(apply_function("nothing", {exact(1)}).is_valid());
}

}  // namespace
}  // namespace nibble::math
