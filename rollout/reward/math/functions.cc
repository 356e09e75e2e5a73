#include "rollout/reward/math/functions.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "rollout/reward/math/math_limits.h"

namespace nibble::math {
namespace {

using ComplexFunction = Complex (*)(const Complex&);

const std::map<std::string, ComplexFunction>& complex_functions() {
  static const std::map<std::string, ComplexFunction> functions = {
      {"sin", [](const Complex& z) { return std::sin(z); }},
      {"cos", [](const Complex& z) { return std::cos(z); }},
      {"tan", [](const Complex& z) { return std::tan(z); }},
      {"csc", [](const Complex& z) { return Complex(1) / std::sin(z); }},
      {"sec", [](const Complex& z) { return Complex(1) / std::cos(z); }},
      {"cot", [](const Complex& z) { return std::cos(z) / std::sin(z); }},
      {"arcsin", [](const Complex& z) { return std::asin(z); }},
      {"arccos", [](const Complex& z) { return std::acos(z); }},
      {"arctan", [](const Complex& z) { return std::atan(z); }},
      {"arccsc", [](const Complex& z) { return std::asin(Complex(1) / z); }},
      {"arcsec", [](const Complex& z) { return std::acos(Complex(1) / z); }},
      {"arccot", [](const Complex& z) { return std::atan(Complex(1) / z); }},
      {"sinh", [](const Complex& z) { return std::sinh(z); }},
      {"cosh", [](const Complex& z) { return std::cosh(z); }},
      {"tanh", [](const Complex& z) { return std::tanh(z); }},
      {"arsinh", [](const Complex& z) { return std::asinh(z); }},
      {"arcosh", [](const Complex& z) { return std::acosh(z); }},
      {"artanh", [](const Complex& z) { return std::atanh(z); }},
  };
  return functions;
}

bool is_real(const Value& x) { return x.approximate().imag() == 0; }

Integer floor_of(const Rational& x) {
  Integer quotient = numerator(x) / denominator(x);  // towards zero
  if (x < 0 && !is_integer(x)) --quotient;
  return quotient;
}

Value floor_value(const Value& x) {
  if (x.exact()) return Value(Rational(floor_of(*x.exact())));
  if (!is_real(x)) return Value();
  return Value(Complex(std::floor(x.approximate().real())));
}

Value absolute(const Value& x) {
  if (x.is_infinite()) return Value::infinity(false);
  if (x.exact()) return *x.exact() < 0 ? -x : x;
  return Value(Complex(std::abs(x.approximate())));
}

Value logarithm(const Value& x, const Value& base) {
  if (x.is_zero() || base.is_zero() || x.is_infinite() || base.is_infinite()) return Value();
  return Value(std::log(x.approximate()) / std::log(base.approximate()));
}

Value factorial(const Value& x) {
  if (const auto n = x.small_integer()) {
    if (*n < 0) return Value();
    Integer product = 1;
    for (long long i = 2; i <= *n; ++i) {
      product *= i;
      if (msb(product) >= kMaxExactBits) return Value();
    }
    return Value(Rational(product));
  }
  if (!is_real(x)) return Value();
  return Value(Complex(std::tgamma(x.approximate().real() + 1)));
}

/// n over k, for any n where k is a small whole number.
Value binomial(const Value& n, const Value& k) {
  const auto count = k.small_integer();
  if (!count || *count > 1'000) {
    return factorial(n) * inverse(factorial(k) * factorial(n + -k));
  }
  if (*count < 0) return Value(Rational(0));
  Value result(Rational(1));
  for (long long i = 0; i < *count && result.is_valid(); ++i) {
    result = result * (n + Value(Rational(-i))) * Value(Rational(1, i + 1));
  }
  return result;
}

Value remainder(const Value& x, const Value& y) {
  if (y.is_zero()) return Value();
  return x + -(y * floor_value(x * inverse(y)));
}

Value common_divisor(const std::vector<Value>& args, bool is_multiple) {
  Integer result = is_multiple ? 1 : 0;
  for (const Value& arg : args) {
    if (!arg.exact() || !is_integer(*arg.exact())) return Value();
    const Integer number = numerator(*arg.exact());
    result = is_multiple ? Integer(lcm(result, number)) : Integer(gcd(result, number));
    if (result != 0 && msb(result) > kMaxExactBits) return Value();
  }
  return Value(Rational(result));
}

Value extreme(const std::vector<Value>& args, bool is_maximum) {
  Value best = args[0];
  for (const Value& arg : args) {
    if (!is_real(arg)) return Value();
    const bool is_larger = arg.approximate().real() > best.approximate().real();
    if (is_larger == is_maximum) best = arg;
  }
  return best;
}

}  // namespace

Value apply_function(const std::string& name, const std::vector<Value>& args) {
  if (args.empty()) return Value();
  if (name == "gcd" || name == "lcm") return common_divisor(args, name == "lcm");
  if (name == "max" || name == "min") return extreme(args, name == "max");
  if (args.size() == 2) {
    if (name == "log") return logarithm(args[0], args[1]);
    if (name == "binomial") return binomial(args[0], args[1]);
    if (name == "mod") return remainder(args[0], args[1]);
    return Value();
  }
  if (args.size() != 1) return Value();
  const Value& x = args[0];
  if (name == "abs") return absolute(x);
  if (x.is_infinite()) return Value();
  if (name == "floor") return floor_value(x);
  if (name == "ceiling") return -floor_value(-x);
  if (name == "factorial") return factorial(x);
  const auto found = complex_functions().find(name);
  return found == complex_functions().end() ? Value() : Value(found->second(x.approximate()));
}

}  // namespace nibble::math
