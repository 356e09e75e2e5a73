#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

/// A decimal number held exactly: digits * 10^exponent. Canonical, so that equal numbers have equal
/// members: no leading or trailing zeros in digits; zero has no digits, no sign and exponent 0.
struct Decimal {
  bool is_negative = false;
  std::string digits;
  int64_t exponent = 0;
  bool operator==(const Decimal&) const = default;
};

/// Reads [+-] digits [. digits] [e [+-] digits] with at least one digit before the exponent, white
/// space around it allowed; nullopt for anything else, for infinities and for exponents beyond
/// +-1,000,000. ASCII digits only.
std::optional<Decimal> parse_decimal(std::string_view text);

/// Nearest double; +-infinity where it is too large.
double to_double(const Decimal& value);

}  // namespace nibble
