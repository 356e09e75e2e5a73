#include "rollout/reward/last_number.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include "rollout/reward/text/text.h"

namespace nibble {
namespace {

constexpr std::string_view kMinusSign = "\xe2\x88\x92";  // U+2212

bool digit_at(std::string_view text, size_t at) {
  return at < text.size() && is_ascii_digit(text[at]);
}

size_t skip_digits(std::string_view text, size_t at) {
  while (digit_at(text, at)) ++at;
  return at;
}

/// End of the whole part that begins at `begin`, thousands groups included.
size_t end_of_whole(std::string_view text, size_t begin) {
  size_t end = skip_digits(text, begin);
  if (end - begin > 3) return end;
  while (end < text.size() && text[end] == ',') {
    const size_t group_end = skip_digits(text, end + 1);
    if (group_end - (end + 1) != 3) break;
    end = group_end;
  }
  return end;
}

/// End of the exponent at `at`, or `at` if there is none.
size_t end_of_exponent(std::string_view text, size_t at) {
  if (at >= text.size() || (text[at] != 'e' && text[at] != 'E')) return at;
  size_t digits = at + 1;
  if (digits < text.size() && (text[digits] == '+' || text[digits] == '-')) ++digits;
  return digit_at(text, digits) ? skip_digits(text, digits) : at;
}

/// Whether a minus stands before `begin` and is a sign.
bool has_minus(std::string_view text, size_t begin) {
  std::string_view before = text.substr(0, begin);
  if (before.ends_with('-')) {
    before.remove_suffix(1);
  } else if (before.ends_with(kMinusSign)) {
    before.remove_suffix(kMinusSign.size());
  } else {
    return false;
  }
  if (before.empty()) return true;
  const char c = before.back();
  return !is_ascii_digit(c) && !is_ascii_letter(c) && c != ')' && c != ']' && c != '}';
}

struct Range {
  size_t begin = 0;
  size_t end = 0;
};

Range find_last_range(std::string_view text) {
  Range last;
  size_t at = 0;
  while (at < text.size()) {
    const bool is_bare_fraction =
        text[at] == '.' && digit_at(text, at + 1) && (at == 0 || !is_ascii_digit(text[at - 1]));
    if (!is_bare_fraction && !is_ascii_digit(text[at])) {
      ++at;
      continue;
    }
    const size_t begin = at;
    at = end_of_whole(text, at);
    if (at < text.size() && text[at] == '.' && digit_at(text, at + 1)) {
      at = skip_digits(text, at + 1);
    }
    at = end_of_exponent(text, at);
    last = {begin, at};
  }
  return last;
}

}  // namespace

std::optional<Decimal> find_last_number(std::string_view text) {
  const Range range = find_last_range(text);
  if (range.begin == range.end) return std::nullopt;
  std::string plain(text.substr(range.begin, range.end - range.begin));
  plain.erase(std::remove(plain.begin(), plain.end(), ','), plain.end());
  if (has_minus(text, range.begin)) plain.insert(plain.begin(), '-');
  return parse_decimal(plain);
}

}  // namespace nibble
