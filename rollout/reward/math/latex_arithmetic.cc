#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "rollout/reward/math/arithmetic_parser.h"
#include "rollout/reward/math/latex_grammar.h"
#include "rollout/reward/math/math_limits.h"

namespace nibble::math {
namespace {

constexpr int64_t kMaxTenExponent = kMaxDigits;

Rational power_of_ten(int64_t exponent) {
  const Integer power =
      boost::multiprecision::pow(Integer(10), static_cast<unsigned>(std::abs(exponent)));
  return exponent < 0 ? Rational(1, power) : Rational(power);
}

/// A whole number before a positive fraction is a mixed number: 2 1/2 is 5/2 where 1/2 is one.
Expression joined(const Expression& left, const Expression& right) {
  if (is_integer_number(left) && is_number(right) && !right->is_decimal && right->number > 0) {
    const Rational sign = left->number < 0 ? -1 : 1;
    return make_number(left->number + sign * right->number);
  }
  return multiply(scalar(left), scalar(right));
}

Expression transposed(const Expression& x) {
  if (!is_matrix(x)) return x;
  const int rows = static_cast<int>(x->args.size()) / x->columns;
  std::vector<Expression> elements;
  for (int column = 0; column < x->columns; ++column) {
    for (int row = 0; row < rows; ++row) {
      elements.push_back(x->args[static_cast<size_t>(row * x->columns + column)]);
    }
  }
  return make_matrix(std::move(elements), rows);
}

bool both_matrices(const Expression& a, const Expression& b) {
  return is_matrix(a) && is_matrix(b);
}

}  // namespace

Expression LatexGrammar::sum() {
  const Level level(*this);
  Expression left = product(/*with_functions=*/true);
  while (token().is_operator("+") || token().is_operator("-")) {
    const bool is_minus = take().text == "-";
    const Expression right = scalar(product(/*with_functions=*/true));
    if (is_matrix(scalar(left)) != is_matrix(right)) throw NotRead();
    left = add(left, is_minus ? negate(right) : right);
  }
  return left;
}

Expression LatexGrammar::product(bool with_functions) {
  Expression left = signed_factor(with_functions);
  while (token().is_operator("*") || token().is_operator("/") || token().is_operator("mod")) {
    const std::string sign = take().text;
    const Expression right = scalar(signed_factor(with_functions));
    if (both_matrices(scalar(left), right)) throw NotRead();
    if (sign == "*") {
      left = multiply(left, right);
    } else if (sign == "/") {
      if (is_matrix(right)) throw NotRead();
      left = divide(left, right);
    } else {
      left = make_node(Op::kFunction, {left, right}, "mod");
    }
  }
  return left;
}

Expression LatexGrammar::signed_factor(bool with_functions) {
  const Level level(*this);
  if (take_operator("+")) return scalar(signed_factor(with_functions));
  if (take_operator("-")) return negate(scalar(signed_factor(with_functions)));
  return adjacent(with_functions);
}

/// Factors side by side. In the argument of a function without parentheses (with_functions false)
/// only the first may be a function itself: sin x cos x is a product of two.
Expression LatexGrammar::adjacent(bool with_functions) {
  std::vector<Expression> factors = {postfixed()};
  while (begins_factor(with_functions)) factors.push_back(postfixed());
  Expression result = factors.back();
  for (size_t i = factors.size() - 1; i-- > 0;) {
    if (both_matrices(factors[i], result)) throw NotRead();
    result = joined(factors[i], result);
  }
  return result;
}

Expression LatexGrammar::postfixed() {
  Expression x = power();
  for (int count = 0; count < kMaxDepth; ++count) {
    if (take_operator("!")) {
      x = make_node(Op::kFunction, {scalar(x)}, "factorial");
    } else if (take_operator("transpose")) {
      x = transposed(scalar(x));
    } else if (is_degree()) {
      at_ += token(1).kind == TokenKind::kOpen ? 4 : 2;  // an angle counts as its number
    } else {
      return x;
    }
  }
  throw NotRead();
}

Expression LatexGrammar::power() {
  Expression base = atom();
  for (int count = 0; token().is_operator("^") && !is_degree(); ++count) {
    if (count == kMaxDepth || is_matrix(scalar(base))) throw NotRead();
    base = make_node(Op::kPower, {base, exponent()});
  }
  return base;
}

/// ^2, ^x_1 or ^{..}: without braces one token.
Expression LatexGrammar::exponent() {
  expect(TokenKind::kOperator, "^");
  Expression result;
  if (token().is(TokenKind::kOpen, "{")) {
    result = braced();
  } else if (token().kind == TokenKind::kNumber) {
    result = number(take().text);
  } else if (token().kind == TokenKind::kSymbol) {
    const std::string name = take().text;
    result = make_leaf(Op::kSymbol, name + subscript());
  } else if (token().is(TokenKind::kCommand, "pi")) {
    ++at_;
    result = make_leaf(Op::kPi);
  } else {
    throw NotRead();
  }
  (void)subscript();
  return scalar(result);
}

Expression LatexGrammar::atom() {
  switch (token().kind) {
    case TokenKind::kNumber: {
      const Expression value = number(take().text);
      (void)subscript();  // the base of a number is not looked at
      return value;
    }
    case TokenKind::kPercent:
      return make_node(Op::kPercent, {number(take().text)});
    case TokenKind::kSymbol:
      return symbol();
    case TokenKind::kEuler:
      ++at_;
      return make_leaf(Op::kEuler);
    case TokenKind::kOpen:
      return bracketed();
    case TokenKind::kBar:
      ++at_;
      return between_bars();
    case TokenKind::kCommand:
      return command();
    case TokenKind::kEnvironment:
      return matrix();
    default:
      throw NotRead();
  }
}

/// A symbol with its index, or what looks like a function of it: f(x), f(1, 2), f^2(x). Anything
/// but one atom or a list makes it a product: x(x+1).
Expression LatexGrammar::symbol() {
  std::string name = take().text;
  name += subscript();
  Expression raised_to;
  if (token().is_operator("^") && !is_degree()) {
    const size_t before = at_;
    const size_t end = token(1).is(TokenKind::kOpen, "{") ? skip_braced(at_ + 1) : at_ + 2;
    at_ = end;
    const bool is_function = is_call();
    at_ = before;
    if (!is_function) return make_leaf(Op::kSymbol, name);
    raised_to = exponent();
  } else if (!is_call()) {
    return make_leaf(Op::kSymbol, name);
  }
  const std::string close = take().text == "(" ? ")" : "]";
  Elements args;
  do {
    args.push_back(scalar(sum()));
  } while (args.size() < kMaxElements && token().kind == TokenKind::kComma &&
           take().kind != TokenKind::kEnd);
  expect(TokenKind::kClose, close);
  Expression result = make_node(Op::kFunction, std::move(args), name + "()");
  return raised_to ? make_node(Op::kPower, {result, raised_to}) : result;
}

bool LatexGrammar::is_call() const {
  if (!token().is(TokenKind::kOpen, "(") && !token().is(TokenKind::kOpen, "[")) return false;
  const TokenKind first = token(1).kind;
  size_t at = at_ + 1;
  if (first == TokenKind::kNumber || first == TokenKind::kPercent || first == TokenKind::kSymbol ||
      token(1).is(TokenKind::kCommand, "pi") || token(1).is(TokenKind::kCommand, "infty")) {
    ++at;
    while (at < tokens_.size() && (tokens_[at].is_operator("_") || tokens_[at].is_operator("^"))) {
      at = skip_braced(at + 1);
    }
    if (at < tokens_.size() && tokens_[at].kind == TokenKind::kClose) return true;
  }
  int depth = 0;
  for (at = at_; at < tokens_.size(); ++at) {
    if (tokens_[at].kind == TokenKind::kOpen) ++depth;
    if (tokens_[at].kind == TokenKind::kClose && --depth == 0) return false;
    if (tokens_[at].kind == TokenKind::kComma && depth == 1) return true;
  }
  return false;
}

/// Behind the token at `at`, or behind the braces that begin there.
size_t LatexGrammar::skip_braced(size_t at) const {
  if (at >= tokens_.size() || !tokens_[at].is(TokenKind::kOpen, "{")) return at + 1;
  int depth = 0;
  for (; at < tokens_.size(); ++at) {
    if (tokens_[at].kind == TokenKind::kOpen) ++depth;
    if (tokens_[at].kind == TokenKind::kClose && --depth == 0) return at + 1;
  }
  return at;
}

Expression LatexGrammar::between_bars() {
  ++open_bars_;
  const Expression inner = scalar(sum());
  --open_bars_;
  expect(TokenKind::kBar, "|");
  return make_node(Op::kFunction, {inner}, "abs");
}

Expression LatexGrammar::number(const std::string& text) {
  const size_t end = text.find('E');
  const auto mantissa = parse_plain_number(text.substr(0, end));
  if (!mantissa) throw NotRead();
  if (end == std::string::npos) return *mantissa;
  int64_t exponent = 0;
  const char* first = text.data() + end + (text[end + 1] == '+' ? 2 : 1);
  const auto read = std::from_chars(first, text.data() + text.size(), exponent);
  if (read.ec != std::errc() || std::abs(exponent) > kMaxTenExponent) throw NotRead();
  return make_number((*mantissa)->number * power_of_ten(exponent), /*is_decimal=*/true);
}

/// "_1" or "_{12}" of what stands behind an underscore; "" without one.
std::string LatexGrammar::subscript() {
  if (!take_operator("_")) return "";
  if (!token().is(TokenKind::kOpen, "{")) {
    const Token index = take();
    if (index.kind != TokenKind::kNumber && index.kind != TokenKind::kSymbol) throw NotRead();
    return index.text.size() > 1 ? "_{" + index.text + "}" : "_" + index.text;
  }
  const size_t end = skip_braced(at_);
  std::string text;
  for (size_t at = at_ + 1; at + 1 < end; ++at) {
    text += tokens_[at].kind == TokenKind::kEuler ? "e" : tokens_[at].text;
  }
  if (end > tokens_.size() || text.empty()) throw NotRead();
  at_ = end;
  return text.size() > 1 ? "_{" + text + "}" : "_" + text;
}

bool LatexGrammar::begins_factor(bool with_functions) const {
  const Token& next = token();
  switch (next.kind) {
    case TokenKind::kNumber:
    case TokenKind::kPercent:
    case TokenKind::kSymbol:
    case TokenKind::kOpen:
      return true;
    case TokenKind::kEuler:
      return with_functions;
    case TokenKind::kBar:
      return open_bars_ == 0;
    case TokenKind::kEnvironment:
      return next.text.starts_with("begin");
    case TokenKind::kCommand: {
      if (next.text == "rfloor" || next.text == "rceil" || next.text == "rvert") return false;
      constexpr std::array kNoFunctions = {"frac", "pi",     "infty", "binom", "dbinom", "tbinom",
                                           "I",    "lfloor", "lceil", "lvert", "gamma"};
      return with_functions ||
             std::find(kNoFunctions.begin(), kNoFunctions.end(), next.text) != kNoFunctions.end();
    }
    default:
      return false;
  }
}

bool LatexGrammar::is_degree() const {
  if (!token().is_operator("^")) return false;
  const bool is_braced = token(1).is(TokenKind::kOpen, "{");
  const Token& sign = token(is_braced ? 2 : 1);
  const bool is_sign =
      sign.is(TokenKind::kCommand, "circ") || sign.is(TokenKind::kCommand, "degree");
  return is_sign && (!is_braced || token(3).is(TokenKind::kClose, "}"));
}

}  // namespace nibble::math
