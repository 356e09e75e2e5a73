#include "rollout/reward/math/scalar_equality.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "rollout/reward/math/evaluate.h"

namespace nibble::math {
namespace {

constexpr int kNumPoints = 8;
constexpr int kMinPoints = 3;  // that both sides must be defined at

/// The number of a number or of a percentage of one; null for anything else.
Expression plain_number(const Expression& x) {
  if (is_number(x)) return x;
  return x->op == Op::kPercent && is_number(x->args[0]) ? x->args[0] : nullptr;
}

bool is_decimal(const Expression& x) {
  const Expression number = plain_number(x);
  return number && number->is_decimal;
}

/// Nearest integer, a tie to the even one.
Integer rounded(const Rational& x) {
  const Rational doubled = x * 2 + 1;
  Integer floor = numerator(doubled) / (denominator(doubled) * 2);
  if (doubled < 0 && Rational(floor * 2) != doubled) --floor;
  const bool is_tie = Rational(floor * 2) == doubled;
  return is_tie && (floor & 1) != 0 ? Integer(floor - 1) : floor;
}

bool round_alike(const Value& a, const Value& b) {
  constexpr int kMillion = 1'000'000;  // six places
  if (a.exact() && b.exact()) {
    return rounded(*a.exact() * kMillion) == rounded(*b.exact() * kMillion);
  }
  const Complex difference = a.approximate() - b.approximate();
  if (std::abs(difference) > 1e-5L) return false;
  const auto places = [](long double x) { return std::nearbyint(x * kMillion); };
  return places(a.approximate().real()) == places(b.approximate().real()) &&
         places(a.approximate().imag()) == places(b.approximate().imag());
}

/// Nothing where the two are not a number and a number: points decide.
std::optional<bool> compare_numbers(const Expression& label, const Expression& answer) {
  const Expression a = plain_number(label);
  const Expression b = plain_number(answer);
  if (!a && !b) return std::nullopt;
  if (a && b && is_integer_number(a) && is_integer_number(b) && a->number == b->number) {
    return true;  // 9% beside 9
  }
  if (!is_decimal(label) && !is_decimal(answer)) return std::nullopt;
  const Value x = constant_value(label);
  const Value y = constant_value(answer);
  if (!x.is_valid() || !y.is_valid() || x.is_infinite() || y.is_infinite()) return std::nullopt;
  // An integer stays one when it is rounded, and so equals no decimal that is another number.
  const bool has_integer = (!is_decimal(label) && x.exact() && is_integer(*x.exact())) ||
                           (!is_decimal(answer) && y.exact() && is_integer(*y.exact()));
  if (!has_integer && round_alike(x, y)) return true;
  return are_equal(x, y);
}

/// "red" of the product r * e * d; "" if a factor is no letter.
std::string spelled(const Expression& x) {
  std::string word;
  for (const Expression& factor : x->args) {
    if (factor->op != Op::kSymbol && factor->op != Op::kEuler) return "";
    word += factor->op == Op::kEuler ? "e" : factor->name;
  }
  return word;
}

bool compare_symbols(const Expression& a, const Expression& b) {
  if (a->op != Op::kSymbol) return compare_symbols(b, a);
  if (b->op == Op::kSymbol) return a->name == b->name;
  if (b->op == Op::kEuler) return a->name == "e";
  if (b->op == Op::kMultiply) return a->name == spelled(b);
  return a->name == leaf_text(b);
}

bool compare_matrices(const Expression& a, const Expression& b) {
  return is_matrix(a) && is_matrix(b) && a->columns == b->columns &&
         a->args.size() == b->args.size() &&
         std::equal(a->args.begin(), a->args.end(), b->args.begin(), are_equal_scalars);
}

}  // namespace

bool agree_at_points(const Expression& label, const Expression& answer) {
  const bool is_constant = symbols_of(label).empty() && symbols_of(answer).empty();
  int num_defined = 0;
  for (int point = 0; point < kNumPoints; ++point) {
    Evaluator left(point);
    Evaluator right(point);
    const Value a = left.value(label);
    const Value b = right.value(answer);
    if (is_constant || left.is_exhausted() || right.is_exhausted()) return are_equal(a, b);
    if (!a.is_valid() || !b.is_valid()) continue;
    if (!are_equal(a, b)) return false;
    ++num_defined;
  }
  return num_defined >= kMinPoints;
}

bool are_equal_scalars(const Expression& label, const Expression& answer) {
  if (is_matrix(label) || is_matrix(answer)) return compare_matrices(label, answer);
  if (label->op == Op::kSymbol || answer->op == Op::kSymbol) {
    return compare_symbols(label, answer);
  }
  if (const auto verdict = compare_numbers(label, answer)) return *verdict;
  return agree_at_points(label, answer);
}

}  // namespace nibble::math
