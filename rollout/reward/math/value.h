#pragma once

#include <complex>
#include <optional>

#include "rollout/reward/math/rational.h"

namespace nibble::math {

using Complex = std::complex<long double>;

/// A number as far as it is known: exactly, or to the digits of a long double. Not valid: a
/// division by zero, an overflow, or what cannot be computed.
class Value {
 public:
  Value() = default;  ///< not valid
  explicit Value(Rational exact);
  explicit Value(Complex approximate);
  static Value infinity(bool is_negative);

  bool is_valid() const { return is_valid_; }
  bool is_infinite() const { return is_infinite_; }
  const std::optional<Rational>& exact() const { return exact_; }
  Complex approximate() const { return approximate_; }
  bool is_zero() const { return exact_ ? *exact_ == 0 : approximate_ == Complex(0); }
  /// Of an exact integer that fits.
  std::optional<long long> small_integer() const;

 private:
  bool is_valid_ = false;
  bool is_infinite_ = false;
  std::optional<Rational> exact_;
  Complex approximate_;
};

/// Exact where both are and the result has at most kMaxExactBits.
Value operator+(const Value& a, const Value& b);
Value operator*(const Value& a, const Value& b);
Value operator-(const Value& a);
Value inverse(const Value& a);
Value power(const Value& base, const Value& exponent);

/// Equal exactly, or to a relative 1e-12 (absolute below 1) where one is not known exactly.
bool are_equal(const Value& a, const Value& b);

}  // namespace nibble::math
