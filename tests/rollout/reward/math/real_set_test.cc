#include "rollout/reward/math/real_set.h"

#include <gtest/gtest.h>

#include <string>

#include "rollout/reward/math/latex_parser.h"

namespace nibble::math {
namespace {

RealSet set_of(const std::string& latex) {
  const auto x = parse_latex(latex);
  EXPECT_TRUE(x) << latex;
  const auto set = RealSet::of(*x);
  EXPECT_TRUE(set) << latex;
  return *set;
}

TEST(RealSet, IsTheSameHoweverItIsWritten) {
  EXPECT_EQ(set_of("[0,1]\\cup[1,2]"), set_of("[0,2]"));
  EXPECT_EQ(set_of("(0,1)\\cup(1,2)"), set_of("(0,2)\\setminus\\{1\\}"));
  EXPECT_EQ(set_of("\\mathbb{R}\\setminus\\{0\\}"), set_of("(0,\\infty)\\cup(-\\infty,0)"));
  EXPECT_EQ(set_of("[0,3]\\cap[2,5]"), set_of("[2,3]"));
  EXPECT_EQ(set_of("(0,1)\\cup\\{1\\}"), set_of("(0,1]"));
  EXPECT_FALSE(set_of("(0,1)\\cup(1,2)") == set_of("(0,2)"));
  EXPECT_FALSE(set_of("[0,1)") == set_of("[0,1]"));
}

TEST(RealSet, ContainsItsClosedEndsOnly) {
  const RealSet set = set_of("[0,1)\\cup\\{3\\}");
  for (const double x : {0.0, 0.5, 3.0}) EXPECT_TRUE(set.contains(x)) << x;
  for (const double x : {-0.1, 1.0, 2.0, 3.1}) EXPECT_FALSE(set.contains(x)) << x;
}

}  // namespace
}  // namespace nibble::math
