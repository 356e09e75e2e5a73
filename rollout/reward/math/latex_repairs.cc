#include "rollout/reward/math/latex_repairs.h"

#include <string_view>

#include "rollout/reward/math/text_scan.h"

namespace nibble::math {
namespace {

bool is_digit_at(std::string_view text, size_t at) {
  return at < text.size() && is_ascii_digit(text[at]);
}

/// One white space, if there is one.
size_t skip_one_space(std::string_view text, size_t at) {
  return at < text.size() && is_space(text[at]) ? at + 1 : at;
}

size_t skip_digits(std::string_view text, size_t at) {
  while (is_digit_at(text, at)) ++at;
  return at;
}

/// What stands in parentheses behind `command` goes into braces behind `result`.
std::string brace_parentheses(std::string_view text, std::string_view command,
                              std::string_view result) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t open = is_at(text, at, command) ? skip_one_space(text, at + command.size())
                                                 : std::string_view::npos;
    if (is_at(text, open, "(")) {
      const size_t close = text.find(')', open);
      if (close != std::string_view::npos) {
        out.append(result).append("{").append(text, open + 1, close - open - 1).append("}");
        at = close + 1;
        continue;
      }
    }
    out += text[at++];
  }
  return out;
}

/// \frac12 and \log_23: one digit, then the digits that follow.
std::string brace_digits(std::string_view text, std::string_view command) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (is_at(text, at, command)) {
      const size_t first = skip_one_space(text, at + command.size());
      const size_t second = skip_one_space(text, first + 1);
      if (is_digit_at(text, first) && is_digit_at(text, second)) {
        const size_t end = skip_digits(text, second);
        out.append(command).append("{").append(text, first, 1).append("}{");
        out.append(text, second, end - second).append("}");
        at = end;
        continue;
      }
    }
    out += text[at++];
  }
  return out;
}

/// "{x}2" behind \frac as "{x}{2}".
std::string brace_denominators(std::string_view text) {
  constexpr std::string_view kFrac = "\\frac";
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (is_at(text, at, kFrac)) {
      const size_t open = skip_one_space(text, at + kFrac.size());
      size_t digit = std::string_view::npos;
      if (is_at(text, open, "{")) {
        for (size_t close = text.find('}', open); close != std::string_view::npos;
             close = text.find('}', close + 1)) {
          const size_t next = skip_one_space(text, close + 1);
          if (!is_digit_at(text, next)) continue;
          digit = next;
          out.append(kFrac).append(text, open, close + 1 - open);
          break;
        }
      }
      if (digit != std::string_view::npos) {
        out.append("{").append(text, digit, 1).append("}");
        at = digit + 1;
        continue;
      }
    }
    out += text[at++];
  }
  return out;
}

/// \sqrt3 and \sqrt x: one character. `may_be_letter` false: digits only.
std::string brace_radicands(std::string_view text) {
  constexpr std::string_view kSqrt = "\\sqrt";
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (!is_at(text, at, kSqrt)) {
      out += text[at++];
      continue;
    }
    out.append(kSqrt);
    at = skip_space(text, at + kSqrt.size());
    if (at < text.size() && text[at] != '{' && text[at] != '[') {
      out.append("{").append(text, at, 1).append("}");
      ++at;
    }
  }
  return out;
}

/// \frac ab as \frac{a}{b}: what is not in braces is one character.
std::string brace_fractions(const std::string& text) {
  constexpr std::string_view kFrac = "\\frac";
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (!is_at(text, at, kFrac)) {
      out += text[at++];
      continue;
    }
    out.append(kFrac);
    at = skip_space(text, at + kFrac.size());
    if (is_at(text, at, "{")) continue;
    if (at + 2 > text.size()) return text;
    out.append("{").append(text, at, 1).append("}");
    ++at;
    if (text[at] == '{') continue;
    out.append("{").append(text, at, 1).append("}");
    ++at;
  }
  return out;
}

bool is_plain_integer(std::string_view text) {
  if (text == "-0") return false;
  if (text.starts_with('-')) text.remove_prefix(1);
  return !text.empty() && skip_digits(text, 0) == text.size() &&
         (text.size() == 1 || text[0] != '0');
}

}  // namespace

std::string fraction_of_slash(const std::string& text) {
  const size_t slash = text.find('/');
  if (slash == std::string::npos || text.find('/', slash + 1) != std::string::npos) return text;
  const std::string top = text.substr(0, slash);
  const std::string bottom = text.substr(slash + 1);
  if (!is_plain_integer(top) || !is_plain_integer(bottom)) return text;
  return "\\frac{" + top + "}{" + bottom + "}";
}

std::string repair_short_forms(std::string text) {
  text = brace_parentheses(text, "^", "^");
  text = brace_parentheses(text, "sqrt", "\\sqrt");
  text = brace_digits(text, "\\frac");
  text = brace_digits(text, "\\log_");
  text = brace_denominators(text);
  text = brace_radicands(text);
  return fraction_of_slash(brace_fractions(text));
}

}  // namespace nibble::math
