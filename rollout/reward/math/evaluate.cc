#include "rollout/reward/math/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>
#include <vector>

#include "rollout/reward/math/functions.h"

namespace nibble::math {
namespace {

constexpr long double kEulerGamma = 0.577215664901532860606512090082402431L;

/// FNV-1a, so that a name has the same value on every machine.
uint64_t hash(std::string_view text, uint64_t seed) {
  uint64_t state = 0xcbf29ce484222325u ^ (seed * 0x9e3779b97f4a7c15u);
  for (const char c : text) {
    state = (state ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  return state ^ (state >> 29);
}

/// Steps of an exact operation: its time grows with the square of the length.
int64_t cost_of(const Value& result) {
  if (!result.exact()) return 0;
  const auto words = static_cast<int64_t>(bits_of(*result.exact()) / 64);
  return words * words / 4;
}

/// What an undefined function gives: smooth, and different for other names and arguments.
Value undefined_function(const std::string& name, const std::vector<Value>& args) {
  Complex phase = static_cast<long double>(hash(name, 0) % 1'000'003) / 1'000.0L;
  long double factor = 1.0L;
  for (const Value& arg : args) {
    factor *= 1.618L;
    phase += arg.approximate() * factor;
  }
  return Value(std::sin(phase) + Complex(args.size()));
}

}  // namespace

void Evaluator::set_symbol(std::string name, Value value) {
  set_name_ = std::move(name);
  set_value_ = std::move(value);
}

Value Evaluator::value(const Expression& x) {
  if (++steps_ > kMaxEvaluationSteps) return Value();
  switch (x->op) {
    case Op::kNumber:
      return Value(x->number);
    case Op::kPercent:
      return value(x->args[0]) * Value(Rational(1, 100));
    case Op::kSymbol:
      return symbol(x->name);
    case Op::kPi:
      return Value(Complex(std::numbers::pi_v<long double>));
    case Op::kEuler:
      return Value(Complex(std::numbers::e_v<long double>));
    case Op::kGamma:
      return Value(Complex(kEulerGamma));
    case Op::kImaginary:
      return Value(Complex(0, 1));
    case Op::kInfinity:
      return Value::infinity(false);
    case Op::kAdd:
    case Op::kMultiply: {
      Value result(Rational(x->op == Op::kAdd ? 0 : 1));
      for (const Expression& arg : x->args) {
        const Value next = value(arg);
        result = x->op == Op::kAdd ? result + next : result * next;
        if (!result.is_valid()) break;
        steps_ += cost_of(result);
      }
      return result;
    }
    case Op::kPower: {
      const Value base = value(x->args[0]);
      const Value exponent = value(x->args[1]);
      return is_number(x->args[1]) && x->args[1]->number == -1 ? inverse(base)
                                                               : power(base, exponent);
    }
    case Op::kFunction:
      return function(x);
    case Op::kSum:
    case Op::kProduct:
      return series(x);
    default:
      return Value();
  }
}

Value Evaluator::symbol(const std::string& name) const {
  if (name == set_name_) return set_value_;
  const uint64_t bits = hash(name, static_cast<uint64_t>(point_));
  const auto top = static_cast<int>(3 + 2 * (bits % 19));
  const bool is_negative = point_ > 0 && ((bits >> 32) & 1) != 0;
  return Value(Rational(is_negative ? -top : top, 16));
}

Value Evaluator::function(const Expression& x) {
  if (x->name == "determinant") return determinant(x);
  std::vector<Value> args;
  for (const Expression& arg : x->args) {
    args.push_back(value(arg));
    if (!args.back().is_valid()) return Value();
  }
  if (x->name.ends_with("()")) return undefined_function(x->name, args);
  return apply_function(x->name, args);
}

Value Evaluator::series(const Expression& x) {
  const auto first = value(x->args[1]).small_integer();
  const auto last = value(x->args[2]).small_integer();
  if (!first || !last || *last < *first || *last - *first >= kMaxTerms) return Value();
  const std::string outer_name = std::exchange(set_name_, x->name);
  const Value outer_value = set_value_;
  Value result(Rational(x->op == Op::kSum ? 0 : 1));
  for (long long i = *first; i <= *last && result.is_valid(); ++i) {
    set_value_ = Value(Rational(i));
    const Value term = value(x->args[0]);
    result = x->op == Op::kSum ? result + term : result * term;
    steps_ += cost_of(result);
  }
  set_name_ = outer_name;
  set_value_ = outer_value;
  return result;
}

/// By elimination; args are the rows.
Value Evaluator::determinant(const Expression& x) {
  size_t n = 1;
  while (n * n < x->args.size()) ++n;
  std::vector<Value> cells;
  for (const Expression& arg : x->args) cells.push_back(value(arg));
  Value result(Rational(1));
  for (size_t k = 0; k < n; ++k) {
    size_t pivot = k;
    while (pivot < n && cells[pivot * n + k].is_valid() && cells[pivot * n + k].is_zero()) ++pivot;
    if (pivot == n) return Value(Rational(0));
    if (pivot != k) {
      for (size_t j = 0; j < n; ++j) std::swap(cells[pivot * n + j], cells[k * n + j]);
      result = -result;
    }
    result = result * cells[k * n + k];
    const Value scale = inverse(cells[k * n + k]);
    for (size_t i = k + 1; i < n; ++i) {
      const Value factor = -(cells[i * n + k] * scale);
      for (size_t j = k; j < n; ++j) {
        if (++steps_ > kMaxEvaluationSteps) return Value();
        cells[i * n + j] = cells[i * n + j] + factor * cells[k * n + j];
      }
    }
  }
  return result;
}

Value constant_value(const Expression& x) {
  if (!symbols_of(x).empty()) return Value();
  return Evaluator(0).value(x);
}

std::optional<long double> real_value(const Expression& x) {
  const Value value = constant_value(x);
  if (!value.is_valid() || value.approximate().imag() != 0) return std::nullopt;
  return value.approximate().real();
}

}  // namespace nibble::math
