#include "rollout/reward/decimal.h"

#include <charconv>
#include <cstddef>
#include <limits>
#include <system_error>

#include "rollout/reward/text/text.h"

namespace nibble {
namespace {

constexpr int64_t kMaxExponent = 1'000'000;

Decimal canonical(Decimal value) {
  const size_t first = value.digits.find_first_not_of('0');
  if (first == std::string::npos) return {};
  value.digits.erase(0, first);
  const size_t last = value.digits.find_last_not_of('0');
  value.exponent += static_cast<int64_t>(value.digits.size() - last - 1);
  value.digits.resize(last + 1);
  return value;
}

/// Reads the digits of an exponent with its sign; nullopt if malformed or out of range.
std::optional<int64_t> parse_exponent(std::string_view text) {
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  int64_t exponent = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), exponent);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if (exponent < -kMaxExponent || exponent > kMaxExponent) return std::nullopt;
  return exponent;
}

}  // namespace

std::optional<Decimal> parse_decimal(std::string_view text) {
  text = trim(text);
  Decimal value;
  if (!text.empty() && (text.front() == '+' || text.front() == '-')) {
    value.is_negative = text.front() == '-';
    text.remove_prefix(1);
  }
  bool has_point = false;
  size_t at = 0;
  for (; at < text.size(); ++at) {
    if (is_ascii_digit(text[at])) {
      value.digits.push_back(text[at]);
      value.exponent -= has_point ? 1 : 0;
    } else if (text[at] == '.' && !has_point) {
      has_point = true;
    } else {
      break;
    }
  }
  if (value.digits.empty()) return std::nullopt;
  if (at < text.size()) {
    if (text[at] != 'e' && text[at] != 'E') return std::nullopt;
    const auto exponent = parse_exponent(text.substr(at + 1));
    if (!exponent) return std::nullopt;
    value.exponent += *exponent;
  }
  return canonical(std::move(value));
}

double to_double(const Decimal& value) {
  if (value.digits.empty()) return 0;
  const std::string text = value.digits + "e" + std::to_string(value.exponent);
  double magnitude = 0;
  const auto error = std::from_chars(text.data(), text.data() + text.size(), magnitude).ec;
  if (error == std::errc::result_out_of_range) {
    magnitude = value.exponent > 0 ? std::numeric_limits<double>::infinity() : 0;
  }
  return value.is_negative ? -magnitude : magnitude;
}

}  // namespace nibble
