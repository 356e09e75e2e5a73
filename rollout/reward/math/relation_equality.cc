#include "rollout/reward/math/relation_equality.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "rollout/reward/math/equality.h"
#include "rollout/reward/math/evaluate.h"
#include "rollout/reward/math/real_set.h"
#include "rollout/reward/math/scalar_equality.h"

namespace nibble::math {
namespace {

constexpr int kNumPoints = 6;

std::string flipped(const std::string& sign) {
  if (sign == "<") return ">";
  if (sign == "<=") return ">=";
  if (sign == ">") return "<";
  if (sign == ">=") return "<=";
  return sign;
}

Expression difference(const Expression& left, const Expression& right) {
  return add(left, negate(right));
}

/// Whether two equations of the same symbols, two or more, are multiples of one another.
bool are_multiples(const Expression& a, const Expression& b) {
  const auto symbols = symbols_of(a);
  if (symbols.size() < 2 || symbols != symbols_of(b)) return false;
  std::optional<Value> ratio;
  int num_defined = 0;
  for (int point = 0; point < kNumPoints; ++point) {
    const Value x = Evaluator(point).value(a);
    const Value y = Evaluator(point).value(b);
    const Value next = x * inverse(y);
    if (!next.is_valid() || next.is_zero()) continue;
    if (ratio && !are_equal(*ratio, next)) return false;
    ratio = next;
    ++num_defined;
  }
  return num_defined >= 3;
}

bool are_equal_links(const Expression& a, const Expression& b) {
  const bool is_plain = std::all_of(a->args.begin(), a->args.end(), is_scalar) &&
                        std::all_of(b->args.begin(), b->args.end(), is_scalar);
  const bool matches = a->name == b->name;
  if (!is_plain) {
    return matches && are_equal_answers(a->args[0], b->args[0]) &&
           are_equal_answers(a->args[1], b->args[1]);
  }
  if (std::any_of(a->args.begin(), a->args.end(), is_matrix) ||
      std::any_of(b->args.begin(), b->args.end(), is_matrix)) {
    return matches && are_equal_scalars(a->args[0], b->args[0]) &&
           are_equal_scalars(a->args[1], b->args[1]);
  }
  const Expression left = difference(a->args[0], a->args[1]);
  const Expression right = difference(b->args[0], b->args[1]);
  if (matches && are_equal_scalars(left, right)) return true;
  if (flipped(a->name) == b->name && are_equal_scalars(left, difference(b->args[1], b->args[0]))) {
    return true;
  }
  return matches && a->name == "=" && are_multiples(left, right);
}

/// Whether the relation holds where its symbol is x; nothing where it is undefined.
std::optional<bool> holds(const Expression& relation, const std::string& symbol, long double x) {
  if (relation->op == Op::kRelations) {
    for (const Expression& link : relation->args) {
      const auto result = holds(link, symbol, x);
      if (!result || !*result) return result;
    }
    return true;
  }
  Evaluator evaluator(0);
  evaluator.set_symbol(symbol, Value(Complex(x)));
  const Value left = evaluator.value(relation->args[0]);
  const Value right = evaluator.value(relation->args[1]);
  if (!left.is_valid() || !right.is_valid()) return std::nullopt;
  const bool is_equal = are_equal(left, right);
  const bool is_less = left.approximate().real() < right.approximate().real();
  if (relation->name == "=") return is_equal;
  if (relation->name == "!=") return !is_equal;
  if (relation->name == "<") return is_less && !is_equal;
  if (relation->name == "<=") return is_less || is_equal;
  if (relation->name == ">") return !is_less && !is_equal;
  return !is_less || is_equal;
}

/// Where the sides of a linear relation are equal.
void add_roots(const Expression& relation, const std::string& symbol,
               std::vector<long double>& points) {
  if (relation->op == Op::kRelations) {
    for (const Expression& link : relation->args) add_roots(link, symbol, points);
    return;
  }
  const auto gap_at = [&](long double x) -> long double {
    Evaluator evaluator(0);
    evaluator.set_symbol(symbol, Value(Complex(x)));
    const Value gap = evaluator.value(relation->args[0]) + -evaluator.value(relation->args[1]);
    return gap.is_valid() ? gap.approximate().real() : std::nanl("");
  };
  const long double at_zero = gap_at(0);
  const long double slope = gap_at(1) - at_zero;
  if (std::isfinite(at_zero) && std::isfinite(slope) && slope != 0) {
    points.push_back(-at_zero / slope);
  }
}

}  // namespace

bool are_equal_relations(const Expression& label, const Expression& answer) {
  if (label->op != answer->op) return false;
  if (label->op == Op::kRelation) return are_equal_links(label, answer);
  return std::equal(label->args.begin(), label->args.end(), answer->args.begin(),
                    answer->args.end(), are_equal_relations);
}

bool is_solution_set(const Expression& relation, const Expression& set) {
  const auto symbols = symbols_of(relation);
  const auto real = RealSet::of(set);
  if (symbols.size() != 1 || !real) return false;
  std::vector<long double> points;
  for (const RealSet::Range& range : real->ranges()) {
    for (const long double end : {range.low, range.high}) {
      if (std::isfinite(end)) points.push_back(end);
    }
  }
  add_roots(relation, symbols[0], points);
  const size_t num_ends = points.size();
  for (size_t i = 0; i < num_ends; ++i) {
    for (const long double step : {-1e-3L, 1e-3L}) points.push_back(points[i] + step);
  }
  for (int i = -200; i <= 200; ++i) points.push_back(static_cast<long double>(i) / 2 + 0.0123L);
  return std::all_of(points.begin(), points.end(), [&](long double x) {
    return holds(relation, symbols[0], x).value_or(false) == real->contains(x);
  });
}

bool is_undefined(const Expression& x) {
  if (x->op == Op::kPower && is_number(x->args[1]) && x->args[1]->number < 0) {
    const Value base = constant_value(x->args[0]);
    if (base.is_valid() && base.is_zero()) return true;
  }
  return std::any_of(x->args.begin(), x->args.end(), is_undefined);
}

}  // namespace nibble::math
