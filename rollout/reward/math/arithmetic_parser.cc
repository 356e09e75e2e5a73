#include "rollout/reward/math/arithmetic_parser.h"

#include <algorithm>
#include <string>

#include "rollout/reward/math/math_limits.h"
#include "rollout/reward/text/text.h"

namespace nibble::math {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  std::optional<Expression> whole() {
    Expression x = sum();
    return at_ == text_.size() ? std::optional(x) : std::nullopt;
  }

 private:
  // Null where the text is not read; callers pass it on.
  Expression sum() {
    if (++depth_ > kMaxDepth) return nullptr;
    Expression left = product();
    while (left) {
      const bool is_plus = take("+");
      if (!is_plus && !take("-")) break;
      const Expression right = product();
      if (!right) return nullptr;
      left = add(left, is_plus ? right : negate(right));
    }
    --depth_;
    return left;
  }

  Expression product() {
    Expression left = signed_factor();
    while (left && !begins("**")) {
      const bool is_times = take("*");
      if (!is_times && !take("/")) break;
      const Expression right = signed_factor();
      if (!right) return nullptr;
      left = is_times ? multiply(left, right) : divide(left, right);
    }
    return left;
  }

  Expression signed_factor() {
    if (++depth_ > kMaxDepth) return nullptr;
    Expression result;
    if (take("-")) {
      result = signed_factor();
      if (result) result = negate(result);
    } else if (take("+")) {
      result = signed_factor();
    } else {
      result = power();
    }
    --depth_;
    return result;
  }

  Expression power() {
    Expression base = atom();
    if (!base || (!take("**") && !take("^"))) return base;
    const Expression exponent = signed_factor();
    return exponent ? make_node(Op::kPower, {base, exponent}) : nullptr;
  }

  Expression atom() {
    if (take("(")) {
      Expression inner = sum();
      return inner && take(")") ? inner : nullptr;
    }
    skip_space();
    const size_t begin = at_;
    while (at_ < text_.size() && (is_ascii_digit(text_[at_]) || text_[at_] == '.')) ++at_;
    const auto number = parse_plain_number(text_.substr(begin, at_ - begin));
    skip_space();
    return number.value_or(nullptr);
  }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) {
      ++at_;
    }
  }

  bool begins(std::string_view sign) {
    skip_space();
    return text_.substr(at_).starts_with(sign);
  }

  bool take(std::string_view sign) {
    if (!begins(sign)) return false;
    at_ += sign.size();
    skip_space();
    return true;
  }

  const std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

std::optional<Expression> parse_arithmetic(std::string_view text) {
  if (text.size() > kMaxLatexBytes) return std::nullopt;
  return Parser(text).whole();
}

std::optional<Expression> parse_plain_number(std::string_view text) {
  const bool is_negative = text.starts_with('-');
  if (is_negative) text.remove_prefix(1);
  const size_t point = text.find('.');
  std::string digits(text);
  if (point != std::string_view::npos) digits.erase(point, 1);
  if (digits.empty() || digits.size() > kMaxDigits ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    return std::nullopt;
  }
  // Without zeros in front: they would make the number octal.
  digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size() - 1));
  Rational value{Integer(digits)};
  if (point != std::string_view::npos) {
    const auto decimals = static_cast<unsigned>(text.size() - point - 1);
    value /= boost::multiprecision::pow(Integer(10), decimals);
  }
  return make_number(is_negative ? Rational(-value) : value, point != std::string_view::npos);
}

}  // namespace nibble::math
