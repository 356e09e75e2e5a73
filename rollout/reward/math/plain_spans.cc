#include "rollout/reward/math/plain_spans.h"

#include <algorithm>
#include <string>

#include "rollout/reward/math/arithmetic_parser.h"
#include "rollout/reward/math/math_limits.h"
#include "rollout/reward/math/text_scan.h"

namespace nibble::math {
namespace {

constexpr size_t kNone = std::string_view::npos;

bool is_digit_at(std::string_view text, size_t at) {
  return at < text.size() && is_ascii_digit(text[at]);
}

size_t skip_digits(std::string_view text, size_t at) {
  while (is_digit_at(text, at)) ++at;
  return at;
}

/// Behind the beginning, a white space or "=", and "**" after it; kNone where neither stands. Where
/// the text begins, nothing need be skipped.
size_t skip_prefix(std::string_view text, size_t at) {
  if (at >= text.size()) return kNone;
  if (is_space(text[at]) || text[at] == '=') {
    ++at;
  } else if (at > 0) {
    return kNone;
  }
  return is_at(text, at, "**") ? at + 2 : at;
}

/// Of a dollar sign or another sign of currency in UTF-8 (U+20A0 .. U+20BF, pound, yen).
size_t skip_currency(std::string_view text, size_t at) {
  if (is_at(text, at, "$")) return at + 1;
  if (is_at(text, at, "\xc2\xa3") || is_at(text, at, "\xc2\xa5") ||
      is_at(text, at, "\xe0\xb8\xbf")) {
    return at + (text[at] == '\xc2' ? 2 : 3);
  }
  if (is_at(text, at, "\xe2\x82") && at + 2 < text.size() &&
      static_cast<unsigned char>(text[at + 2]) >= 0xa0) {
    return at + 3;
  }
  return at;
}

size_t arithmetic_char(std::string_view text, size_t at) {
  if (at >= text.size()) return 0;
  const char c = text[at];
  if (is_ascii_digit(c) || c == '.' || is_space(c)) return 1;
  if (std::string_view("+-*/^()").find(c) != kNone) return 1;
  return is_at(text, at, "\xc3\x97") || is_at(text, at, "\xc3\xb7") ? 2 : 0;  // times, obelus
}

bool is_arithmetic_sign(std::string_view text, size_t at) {
  return arithmetic_char(text, at) == 2 || std::string_view("+-*/^()").find(text[at]) != kNone;
}

/// Whether arithmetic may end at `at`, and where that ends.
size_t skip_suffix(std::string_view text, size_t at) {
  if (is_at(text, at, "**")) at += 2;
  if (at == text.size()) return at;
  const char c = text[at];
  const bool ends = c == '.' || c == ',' || c == ':' || c == ')' || c == '$' || is_space(c);
  return ends ? at + 1 : kNone;
}

/// Whole part with groups of three: "1,234", "1 234"; kNone if it is not grouped.
size_t end_of_groups(std::string_view text, size_t at) {
  if (!is_digit_at(text, at) || text[at] == '0') return kNone;
  size_t end = at;
  while (end < at + 3 && is_digit_at(text, end)) ++end;
  size_t groups = 0;
  while (end < text.size() && (text[end] == ' ' || text[end] == ',') &&
         std::min(skip_digits(text, end + 1), end + 4) == end + 4) {
    end += 4;
    ++groups;
  }
  return groups > 0 ? end : kNone;
}

/// End of the number that begins at `at`, its sign included; kNone if there is none.
size_t end_of_number(std::string_view text, size_t at) {
  const size_t whole = is_at(text, at, "-") ? at + 1 : at;
  size_t end = end_of_groups(text, whole);
  if (end != kNone) {
    return is_at(text, end, ".") && is_digit_at(text, end + 1) ? skip_digits(text, end + 1) : end;
  }
  end = skip_digits(text, whole);
  if (end > whole) {
    const bool has_decimals =
        (is_at(text, end, ".") || is_at(text, end, ",")) && is_digit_at(text, end + 1);
    return has_decimals ? skip_digits(text, end + 1) : end;
  }
  return is_at(text, at, ".") && is_digit_at(text, at + 1) ? skip_digits(text, at + 1) : kNone;
}

size_t skip_percent(std::string_view text, size_t at) {
  const size_t word = skip_space(text, at);
  for (const std::string_view percent :
       {"%", "percentage", "Percentage", "percent", "Percent", "pct", "Pct"}) {
    if (is_at(text, word, percent)) return word + percent.size();
  }
  return at;
}

}  // namespace

std::optional<PlainSpan> arithmetic_at(std::string_view text, size_t at) {
  const size_t begin = skip_prefix(text, at);
  if (begin == kNone) return std::nullopt;
  size_t digit = begin;
  for (const std::string_view sign : {"-", "(", "-"}) {
    if (is_at(text, digit, sign)) digit += 1;
  }
  if (!is_digit_at(text, digit)) return std::nullopt;
  size_t end = kNone;       // of the longest reading
  size_t behind = kNone;    // with what must follow it
  size_t sign_end = kNone;  // behind the first sign of arithmetic
  const size_t limit = std::min(text.size(), begin + kMaxArithmeticBytes);
  for (size_t next = digit + 1; next <= limit;) {
    if (sign_end != kNone && next > sign_end) {
      if (const size_t suffix = skip_suffix(text, next); suffix != kNone) {
        end = next;
        behind = suffix;
      }
    }
    const size_t num_bytes = arithmetic_char(text, next);
    if (num_bytes == 0) break;
    if (sign_end == kNone && is_arithmetic_sign(text, next)) sign_end = next + num_bytes;
    next += num_bytes;
  }
  if (end == kNone) return std::nullopt;
  return PlainSpan{at, behind, text.substr(begin, end - begin)};
}

std::optional<PlainSpan> number_at(std::string_view text, size_t at) {
  const size_t prefix = skip_prefix(text, at);
  if (prefix == kNone) return std::nullopt;
  const size_t begin = skip_currency(text, prefix);
  const size_t end = end_of_number(text, begin);
  if (end == kNone) return std::nullopt;
  const size_t behind = skip_percent(text, end);
  return PlainSpan{at, behind, text.substr(begin, end - begin), true, behind > end};
}

std::optional<PlainSpan> plain_span_at(std::string_view text, size_t at) {
  const auto arithmetic = arithmetic_at(text, at);
  return arithmetic ? arithmetic : number_at(text, at);
}

Expression read_plain(const PlainSpan& span) {
  if (!span.is_number) return parse_arithmetic(span.text).value_or(nullptr);
  std::string digits(span.text);
  // One comma that is no separator of thousands is a decimal one.
  const size_t comma = digits.find(',');
  const size_t whole = digits.starts_with('-') ? 1 : 0;
  if (comma != std::string::npos && end_of_groups(digits, whole) == kNone) digits[comma] = '.';
  std::erase_if(digits, [](char c) { return c == ',' || c == ' '; });
  const Expression number = parse_plain_number(digits).value_or(nullptr);
  return number && span.is_percent ? make_node(Op::kPercent, {number}) : number;
}

}  // namespace nibble::math
