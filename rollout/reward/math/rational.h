#pragma once

#include <boost/multiprecision/cpp_int.hpp>
#include <cstddef>

namespace nibble::math {

using Integer = boost::multiprecision::cpp_int;
using Rational = boost::multiprecision::cpp_rational;

inline bool is_integer(const Rational& value) { return denominator(value) == 1; }

/// top / bottom. The constructor of Rational refuses a bottom below 0.
inline Rational quotient(const Integer& top, const Integer& bottom) {
  return bottom < 0 ? Rational(-top, -bottom) : Rational(top, bottom);
}

/// Bits of the larger of numerator and denominator.
inline size_t bits_of(const Rational& value) {
  const auto bits = [](const Integer& number) {
    return number == 0 ? size_t{0} : msb(number < 0 ? Integer(-number) : number) + 1;
  };
  const size_t top = bits(numerator(value));
  const size_t bottom = bits(denominator(value));
  return top > bottom ? top : bottom;
}

}  // namespace nibble::math
