#include "rollout/reward/miles/miles_expression.h"

#include <array>
#include <string>

#include "rollout/reward/math/arithmetic_parser.h"
#include "rollout/reward/math/text_scan.h"
#include "rollout/reward/text/text.h"

namespace nibble::miles {
namespace {

using math::Expression;
using math::Op;

constexpr int kMaxDepth = 100;
constexpr std::array<std::string_view, 9> kFunctions = {"sqrt", "sin", "cos", "tan",   "log",
                                                        "ln",   "exp", "abs", "arctan"};

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  std::optional<Expression> whole() {
    Expression x = sum();
    if (!x || at_ != text_.size()) return std::nullopt;
    return x;
  }

 private:
  // Null where the text is not read; callers pass it on.
  Expression sum() {
    if (++depth_ > kMaxDepth) return nullptr;
    Expression left = product();
    while (left && (is_next("+") || is_next("-"))) {
      const bool is_plus = text_[at_++] == '+';
      const Expression right = product();
      if (!right) return nullptr;
      left = math::add(left, is_plus ? right : math::negate(right));
    }
    --depth_;
    return left;
  }

  Expression product() {
    Expression left = signed_factor();
    while (left) {
      const bool divides = is_next("/");
      const bool multiplies = is_next("*") && !is_next("**");
      if (!divides && !multiplies && !begins_factor()) break;
      if (divides || multiplies) ++at_;
      const Expression right = divides || multiplies ? signed_factor() : power();
      if (!right) return nullptr;
      left = divides ? math::divide(left, right) : math::multiply(left, right);
    }
    return left;
  }

  Expression signed_factor() {
    if (++depth_ > kMaxDepth) return nullptr;
    Expression result;
    if (is_next("-") || is_next("+")) {
      const bool is_minus = text_[at_++] == '-';
      result = signed_factor();
      if (result && is_minus) result = math::negate(result);
    } else {
      result = power();
    }
    --depth_;
    return result;
  }

  Expression power() {
    Expression base = atom();
    for (int i = 0; base && i < kMaxDepth && is_next("!"); ++i) {
      ++at_;
      base = math::make_node(Op::kFunction, {base}, "factorial");
    }
    if (!base || (!is_next("^") && !is_next("**"))) return base;
    at_ += is_next("**") ? 2 : 1;
    const Expression exponent = signed_factor();
    return exponent ? math::make_node(Op::kPower, {base, exponent}) : nullptr;
  }

  Expression atom() {
    if (at_ >= text_.size()) return nullptr;
    if (text_[at_] == '(') return group();
    if (is_ascii_letter(text_[at_])) return name();
    const size_t begin = at_;
    while (at_ < text_.size() && (is_ascii_digit(text_[at_]) || text_[at_] == '.')) ++at_;
    return math::parse_plain_number(text_.substr(begin, at_ - begin)).value_or(nullptr);
  }

  Expression group() {
    ++at_;
    Expression inner = sum();
    if (!inner || !is_next(")")) return nullptr;
    ++at_;
    return inner;
  }

  Expression name() {
    // A name is known where it is a whole identifier, as in Python: sqrt5 is s*q*r*t*5.
    size_t end = at_;
    while (end < text_.size() && math::is_word_char(text_[end])) ++end;
    const std::string_view identifier = text_.substr(at_, end - at_);
    if (identifier == "pi") {
      at_ += 2;
      return math::make_leaf(Op::kPi);
    }
    for (const std::string_view function : kFunctions) {
      if (identifier != function) continue;
      at_ += function.size();
      const Expression argument = is_next("(") ? group() : power();
      return argument ? applied(function, argument) : nullptr;
    }
    return math::make_leaf(Op::kSymbol, std::string(1, text_[at_++]));
  }

  static Expression applied(std::string_view function, const Expression& x) {
    if (function == "sqrt") {
      return math::make_node(Op::kPower, {x, math::make_number(math::Rational(1, 2))});
    }
    if (function == "exp") return math::make_node(Op::kPower, {math::make_leaf(Op::kEuler), x});
    if (function == "log" || function == "ln") {
      return math::make_node(Op::kFunction, {x, math::make_leaf(Op::kEuler)}, "log");
    }
    return math::make_node(Op::kFunction, {x}, std::string(function));
  }

  bool is_next(std::string_view sign) const { return math::is_at(text_, at_, sign); }
  bool begins_factor() const {
    return at_ < text_.size() &&
           (text_[at_] == '(' || is_ascii_letter(text_[at_]) || is_ascii_digit(text_[at_]));
  }

  const std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

std::optional<Expression> parse_expression(std::string_view text) { return Parser(text).whole(); }

}  // namespace nibble::miles
