#include "rollout/reward/math/latex_parser.h"

#include <gtest/gtest.h>

#include <string>

#include "rollout/reward/math/arithmetic_parser.h"
#include "rollout/reward/math/latex_normalize.h"
#include "rollout/reward/math/symbol_shape.h"

namespace nibble::math {
namespace {

/// The tree as text: operators by number, enough to see how something was read.
std::string shape(const Expression& x) {
  const std::string leaf = leaf_text(x);
  if (!leaf.empty()) return leaf;
  static const char* const kNames[] = {
      "num", "%",    "sym", "pi",  "e",   "gamma", "I",   "oo",  "+",     "*",  "^",   "call",
      "sum", "prod", "mat", "tup", "set", "int",   "cup", "cap", "minus", "NS", "rel", "chain"};
  std::string text = kNames[static_cast<int>(x->op)];
  if (!x->name.empty()) text += ":" + x->name;
  if (x->op == Op::kNumber) text += ":" + x->number.str();
  if (x->args.empty()) return text;
  char separator = '(';
  for (const Expression& arg : x->args) {
    text.append(1, separator).append(shape(arg));
    separator = ' ';
  }
  return text.append(1, ')');
}

std::string read(const std::string& latex) {
  const auto x = parse_latex(normalize_latex(latex, BoxChoice::kAll));
  return x ? shape(*x) : "none";
}

TEST(ParseLatex, ReadsArithmeticAsItIsWritten) {
  EXPECT_EQ(read("1+2x"), "+(1 *(2 x))");
  EXPECT_EQ(read("-x^2"), "*(-1 ^(x 2))");
  EXPECT_EQ(read("\\frac12"), "1/2");
  EXPECT_EQ(read("2\\frac{1}{2}"), "5/2");
  EXPECT_EQ(read("-2\\frac{1}{2}"), "-5/2");
  EXPECT_EQ(read("\\sqrt[3]{x}"), "^(x 1/3)");
  EXPECT_EQ(read("\\log_2 8"), "call:log(8 2)");
  EXPECT_EQ(read("\\sin^{-1} x"), "call:arcsin(x)");
  EXPECT_EQ(read("\\sin x\\cos x"), "*(call:sin(x) call:cos(x))");
  EXPECT_EQ(read("f(x)"), "call:f()(x)");
  EXPECT_EQ(read("x(x+1)"), "*(x +(x 1))");
  EXPECT_EQ(read("x_{10}"), "x_{10}");
}

TEST(ParseLatex, ReadsListsSetsAndIntervals) {
  EXPECT_EQ(read("12,345"), "12345");
  EXPECT_EQ(read("12, 345"), "set(12 345)");
  EXPECT_EQ(read("(1,2)"), "int(1 2)");
  EXPECT_EQ(read("(2,1)"), "tup(2 1)");
  EXPECT_EQ(read("(1,2,3)"), "tup(1 2 3)");
  EXPECT_EQ(read("\\{1,2\\}"), "set(1 2)");
  EXPECT_EQ(read("\\pm 1"), "set(-1 1)");
  EXPECT_EQ(read("1 \\pm x"), "set(+(1 x) +(1 *(-1 x)))");
  EXPECT_EQ(read("x=1,2"), "rel:=(x set(1 2))");
  EXPECT_EQ(read("x=1,y=2"), "set(rel:=(x 1) rel:=(y 2))");
  EXPECT_EQ(read("[0,1]\\cup\\{2\\}"), "cup(int(0 1) set(2))");
  EXPECT_EQ(read("0<x<1"), "chain(rel:<(0 x) rel:<(x 1))");
  EXPECT_EQ(read("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"), "mat(1 2 3 4)");
}

TEST(ParseLatex, RefusesWhatIsNoMathematics) {
  for (const char* latex :
       {"", "1+", "(1", "1)", "\\frac{1}", "\\unknown", "1//2", "^2", "{",
        "\\begin{pmatrix}1&2\\\\3\\end{pmatrix}", "(1,2)+3", "x^{2", "5.", "\\int x", "1=", "#"}) {
    EXPECT_EQ(read(latex), "none") << latex;
  }
}

TEST(NormalizeLatex, DropsWhatIsNotTheValue) {
  const auto normalized = [](const char* latex) { return normalize_latex(latex, BoxChoice::kAll); };
  EXPECT_EQ(normalized("5\\text{ cm}^2"), "5");
  EXPECT_EQ(normalized("7 square feet"), "7");
  EXPECT_EQ(normalized("\\$5"), "5");
  EXPECT_EQ(normalized("1 \\text{ and } 2"), "1, 2");
  EXPECT_EQ(normalized("50 percent"), "50\\%");
  EXPECT_EQ(normalized("\\left(1,2\\right]"), "(1,2]");
  EXPECT_EQ(normalized("3/4"), "\\frac{3}{4}");
  EXPECT_EQ(normalized("x^(2)"), "x^{2}");
  EXPECT_EQ(normalized("\\text{only text}"), "\\text{only text}");
}

TEST(ParseArithmetic, FollowsTheUsualPrecedence) {
  const auto read_plain = [](const char* text) {
    const auto x = parse_arithmetic(text);
    return x ? shape(*x) : "none";
  };
  EXPECT_EQ(read_plain("1 + 2*3"), "+(1 *(2 3))");
  EXPECT_EQ(read_plain("2^3^2"), "^(2 ^(3 2))");
  EXPECT_EQ(read_plain("2**-1"), "^(2 -1)");
  EXPECT_EQ(read_plain("(1/2)"), "1/2");
  EXPECT_EQ(read_plain("3 4"), "none");
  EXPECT_EQ(read_plain("2(3)"), "none");
  EXPECT_EQ(read_plain("x"), "none");
}

}  // namespace
}  // namespace nibble::math
