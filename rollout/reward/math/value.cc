#include "rollout/reward/math/value.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "rollout/reward/math/math_limits.h"

namespace nibble::math {
namespace {

constexpr long double kTolerance = 1e-12L;

long double to_long_double(const Rational& value) {
  // Numerator and denominator are below 2^kMaxExactBits, far below what a long double holds here;
  // where it is a double, the quotient of two overflows is no number and the value not valid.
  return numerator(value).convert_to<long double>() / denominator(value).convert_to<long double>();
}

Value bounded(Rational value) {
  if (bits_of(value) <= kMaxExactBits) return Value(std::move(value));
  return Value();
}

Value exact_power(const Rational& base, long long exponent) {
  const auto magnitude = static_cast<unsigned>(exponent < 0 ? -exponent : exponent);
  const Integer top = boost::multiprecision::pow(numerator(base), magnitude);
  const Integer bottom = boost::multiprecision::pow(denominator(base), magnitude);
  if (exponent >= 0) return Value(quotient(top, bottom));
  return Value(quotient(bottom, top));
}

}  // namespace

Value::Value(Rational exact)
    : is_valid_(true), exact_(std::move(exact)), approximate_(to_long_double(*exact_)) {}

Value::Value(Complex approximate)
    : is_valid_(std::isfinite(approximate.real()) && std::isfinite(approximate.imag())),
      approximate_(approximate) {}

Value Value::infinity(bool is_negative) {
  Value value;
  value.is_valid_ = true;
  value.is_infinite_ = true;
  const long double infinity = std::numeric_limits<long double>::infinity();
  value.approximate_ = is_negative ? -infinity : infinity;
  return value;
}

std::optional<long long> Value::small_integer() const {
  if (!exact_ || !is_integer(*exact_) || bits_of(*exact_) > 62) return std::nullopt;
  return numerator(*exact_).convert_to<long long>();
}

Value operator+(const Value& a, const Value& b) {
  if (!a.is_valid() || !b.is_valid()) return Value();
  if (a.is_infinite() || b.is_infinite()) {
    const bool differ = a.is_infinite() && b.is_infinite() && a.approximate() != b.approximate();
    return differ ? Value() : Value::infinity((a.is_infinite() ? a : b).approximate().real() < 0);
  }
  if (a.exact() && b.exact()) {
    const Value sum = bounded(*a.exact() + *b.exact());
    if (sum.is_valid()) return sum;
  }
  return Value(a.approximate() + b.approximate());
}

Value operator*(const Value& a, const Value& b) {
  if (!a.is_valid() || !b.is_valid()) return Value();
  if (a.is_infinite() || b.is_infinite()) {
    if (a.is_zero() || b.is_zero() || a.approximate().imag() != 0 || b.approximate().imag() != 0) {
      return Value();
    }
    return Value::infinity((a.approximate().real() < 0) != (b.approximate().real() < 0));
  }
  if (a.exact() && b.exact()) {
    const Value product = bounded(*a.exact() * *b.exact());
    if (product.is_valid()) return product;
  }
  return Value(a.approximate() * b.approximate());
}

Value operator-(const Value& a) {
  if (a.is_infinite()) return Value::infinity(a.approximate().real() > 0);
  if (a.exact()) return Value(Rational(-*a.exact()));
  return a.is_valid() ? Value(-a.approximate()) : Value();
}

Value inverse(const Value& a) {
  if (!a.is_valid() || a.is_zero()) return Value();
  if (a.is_infinite()) return Value(Rational(0));
  if (a.exact()) return Value(quotient(denominator(*a.exact()), numerator(*a.exact())));
  return Value(Complex(1) / a.approximate());
}

Value power(const Value& base, const Value& exponent) {
  if (!base.is_valid() || !exponent.is_valid()) return Value();
  if (base.is_infinite() || exponent.is_infinite()) return Value();
  if (exponent.is_zero()) return base.is_zero() ? Value() : Value(Rational(1));
  if (base.is_zero()) {
    return exponent.approximate().real() > 0 ? Value(Rational(0)) : Value();
  }
  if (base.exact()) {
    const auto integer = exponent.small_integer();
    const auto bits = static_cast<long double>(bits_of(*base.exact()));
    if (integer && bits * std::abs(static_cast<long double>(*integer)) <= kMaxExactBits) {
      return exact_power(*base.exact(), *integer);
    }
  }
  const Complex x = base.approximate();
  const Complex y = exponent.approximate();
  if (x.imag() == 0 && y.imag() == 0 && (x.real() > 0 || y.real() == std::nearbyint(y.real()))) {
    return Value(Complex(std::pow(x.real(), y.real())));
  }
  return Value(std::pow(x, y));
}

bool are_equal(const Value& a, const Value& b) {
  if (!a.is_valid() || !b.is_valid()) return false;
  if (a.is_infinite() || b.is_infinite()) {
    return a.is_infinite() && b.is_infinite() && a.approximate() == b.approximate();
  }
  if (a.exact() && b.exact()) return *a.exact() == *b.exact();
  const long double scale = std::max({std::abs(a.approximate()), std::abs(b.approximate()), 1.0L});
  return std::abs(a.approximate() - b.approximate()) <= kTolerance * scale;
}

}  // namespace nibble::math
