#include "rollout/reward/miles/miles_normalize.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <set>

#include "core/base/fail.h"
#include "rollout/reward/math/latex_repairs.h"
#include "rollout/reward/math/text_scan.h"
#include "rollout/reward/miles/latex_to_text.h"
#include "rollout/reward/text/text.h"

namespace nibble::miles {
namespace {

using math::is_at;
using math::replace_all;

constexpr std::string_view kTextCommand = "\\text{";

/// "\text{..}" around the whole as what is in it.
std::string_view unwrapped_text(std::string_view text) {
  const bool is_wrapped = text.size() > kTextCommand.size() + 1 && text.starts_with(kTextCommand) &&
                          text.ends_with('}') && text.find('\n') == std::string_view::npos;
  if (!is_wrapped) return text;
  return text.substr(kTextCommand.size(), text.size() - kTextCommand.size() - 1);
}

/// Braces around what follows `command` without them, one character each, `count` times. nullopt
/// where the text ends at the command.
std::optional<std::string> braced(const std::string& text, std::string_view command, int count) {
  std::string out;
  size_t at = 0;
  while (at < text.size()) {
    if (!is_at(text, at, command)) {
      out += text[at++];
      continue;
    }
    out += command;
    at += command.size();
    if (at == text.size() || is_at(text, at, command)) return std::nullopt;
    for (int i = 0; i < count && at < text.size() && text[at] != '{'; ++i) {
      if (count == 2 && i == 0 && at + 1 == text.size()) return text;
      out.append("{").append(text, at, 1).append("}");
      ++at;
    }
  }
  return out;
}

/// nullopt where the rules fail.
std::optional<std::string> mathd_stripped(std::string text) {
  replace_all(text, "\n", "");
  replace_all(text, "\\!", "");
  replace_all(text, "\\\\", "\\");
  replace_all(text, "tfrac", "frac");
  replace_all(text, "dfrac", "frac");
  for (const std::string_view dropped : {"\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"}) {
    replace_all(text, dropped, "");
  }
  if (const size_t unit = text.find("\\text{ "); unit != std::string::npos) {
    if (text.find("\\text{ ", unit + 1) != std::string::npos) return std::nullopt;
    text.resize(unit);
  }
  replace_all(text, "\\%", "");
  replace_all(text, " .", " 0.");
  replace_all(text, "{.", "{0.");
  if (text.empty()) return text;
  if (text[0] == '.') text.insert(text.begin(), '0');
  const size_t equals = text.find('=');
  if (equals != std::string::npos && equals <= 2 &&
      text.find('=', equals + 1) == std::string::npos) {
    text.erase(0, equals + 1);
  }
  const auto with_roots = braced(text, "\\sqrt", 1);
  if (!with_roots) return std::nullopt;
  text = *with_roots;
  replace_all(text, " ", "");
  const auto with_fractions = braced(text, "\\frac", 2);
  if (!with_fractions) return std::nullopt;
  if (*with_fractions == "0.5") return "\\frac{1}{2}";
  return math::fraction_of_slash(*with_fractions);
}

/// A number as Python's float() reads it, white space around it, infinities and digits of other
/// scripts' width included.
std::optional<double> read_float(std::string text) {
  for (char digit = '0'; digit <= '9'; ++digit) {  // full-width digits, U+FF10 on
    const char wide[] = {'\xef', '\xbc', static_cast<char>('\x90' + (digit - '0')), '\0'};
    replace_all(text, wide, std::string_view(&digit, 1));
  }
  std::string_view rest = trim(text);
  if (rest.starts_with('+')) rest.remove_prefix(1);
  if (rest.empty() || (!is_ascii_digit(rest.back()) && rest.back() != '.')) return std::nullopt;
  double value = 0;
  const auto read = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  if (read.ec != std::errc() || read.ptr != rest.data() + rest.size()) return std::nullopt;
  return value;
}

bool is_whole(double value) {
  return std::isfinite(value) && std::abs(value - std::nearbyint(value)) <= 1e-7;
}

/// Every digit of a whole double.
std::string integer_text(double value) { return fmt::format("{:.0f}", value == 0 ? 0.0 : value); }

std::string without_units(std::string text) {
  constexpr std::array kUnits = {"degree", "cm",   "centimeter", "meter", "mile",  "second",
                                 "minute", "hour", "day",        "week",  "month", "year",
                                 "foot",   "feet", "inch",       "yard"};
  for (const std::string_view unit : kUnits) {
    std::string out;
    for (size_t at = 0; at < text.size();) {
      if (!is_at(text, at, unit)) {
        out += text[at++];
        continue;
      }
      at += unit.size();
      if (is_at(text, at, "es")) at += 2;
      if (is_at(text, at, "s")) at += 1;
      while (is_at(text, at, " ")) ++at;
      size_t digits = at + 1;
      while (digits < text.size() && is_ascii_digit(text[digits])) ++digits;
      if (is_at(text, at, "^") && digits > at + 1) at = digits;
    }
    text = std::move(out);
  }
  return text;
}

/// Drops what `matches` finds: it gives the end of a match at a place, or the place.
std::string without(std::string_view text, const auto& end_of_match) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = end_of_match(text, at);
    if (end > at) {
      at = end;
    } else {
      out += text[at++];
    }
  }
  return out;
}

size_t end_of_degrees(std::string_view text, size_t at) {
  if (text[at] != '^') return at;
  size_t next = at + 1;
  while (is_at(text, next, " ")) ++next;
  return is_at(text, next, "\\circ") ? next + 5 : at;
}

size_t end_of_spaced_comma(std::string_view text, size_t at) {
  if (!is_at(text, at, ",\\!")) return at;
  size_t next = at + 3;
  while (is_at(text, next, " ")) ++next;
  return next;
}

/// "7 3/4" as "7+3/4", "- 3" as "-3".
std::string with_mixed_numbers(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] != ' ') {
      out += text[at];
      continue;
    }
    size_t next = at;
    while (is_at(text, next, " ")) ++next;
    const bool joins = !out.empty() && is_ascii_digit(out.back()) && next < text.size() &&
                       is_ascii_digit(text[next]);
    if (joins) out += '+';
    at = next - 1;
  }
  return out;
}

}  // namespace

std::string mathd_normalized(std::string_view answer) {
  const std::string_view text = trim(unwrapped_text(trim(answer)));
  return mathd_stripped(std::string(text)).value_or(std::string(text));
}

std::string normalized(std::string_view answer) {
  std::string text(unwrapped_text(answer));
  for (const std::string_view sign : {"\\%", "\\$", "$", "%"}) replace_all(text, sign, "");
  replace_all(text, " or ", " , ");
  replace_all(text, " and ", " , ");
  replace_all(text, "million", "*10^6");
  replace_all(text, "billion", "*10^9");
  replace_all(text, "trillion", "*10^12");
  text = without(without_units(std::move(text)), end_of_degrees);
  if (text.size() > 1 && text.front() == '{' && text.back() == '}') {
    text = text.substr(1, text.size() - 2);
  }
  text = without(text, end_of_spaced_comma);
  if (const auto number = read_float(text); number && is_whole(*number)) {
    text = integer_text(std::nearbyint(*number));
  }
  if (text.find('\\') != std::string::npos) text = latex_to_text(text);
  text = with_mixed_numbers(text);
  std::erase_if(text, [](char c) { return c == '{' || c == '}'; });
  std::transform(text.begin(), text.end(), text.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  if (is_integer_text(text)) {
    std::erase(text, ',');
    text = integer_text(std::trunc(read_float(text).value_or(0)));
  }
  return text;
}

std::string without_thousands(std::string text) {
  const auto is_group = [&](size_t comma) {
    const auto is_digit_at = [&](size_t at) {
      return at < text.size() && is_ascii_digit(text[at]);
    };
    return comma > 0 && is_digit_at(comma - 1) && is_digit_at(comma + 1) &&
           is_digit_at(comma + 2) && is_digit_at(comma + 3) && !is_digit_at(comma + 4);
  };
  // Whether a comma goes depends on what follows it alone, and a later one that goes makes the
  // digits behind an earlier one a longer run: from the left, as the rule does in each of its
  // passes.
  for (bool is_changed = true; is_changed;) {
    is_changed = false;
    for (size_t at = text.find(','); at != std::string::npos; at = text.find(',', at)) {
      if (is_group(at)) {
        text.erase(at, 1);
        is_changed = true;
      } else {
        ++at;
      }
    }
  }
  return text;
}

bool is_integer_text(const std::string& text) {
  const auto number = read_float(without_thousands(text));
  return number && is_whole(*number);
}

int num_distinct_letters(std::string_view text) {
  std::set<std::string_view> letters;
  for (size_t at = 0; at < text.size();) {
    size_t end = at + 1;
    while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) ++end;
    const bool is_beyond_ascii = static_cast<unsigned char>(text[at]) >= 0x80;
    if (is_beyond_ascii || is_ascii_letter(text[at])) letters.insert(text.substr(at, end - at));
    at = end;
  }
  return static_cast<int>(letters.size());
}

}  // namespace nibble::miles
