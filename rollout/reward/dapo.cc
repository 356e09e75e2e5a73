#include "rollout/reward/dapo.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <optional>
#include <utility>

#include "core/base/fail.h"
#include "rollout/reward/math/text_scan.h"
#include "rollout/reward/text/text.h"

namespace nibble {
namespace {

using math::is_at;
using math::replace_all;
using math::skip_space;

constexpr size_t kNone = std::string_view::npos;
constexpr size_t kLastCharacters = 300;
constexpr size_t kMaxLabelBytes = 4 << 10;

using Pair = std::pair<std::string_view, std::string_view>;
constexpr std::array<Pair, 10> kSubstitutions = {Pair{"an ", ""},      {"a ", ""},
                                                 {".$", "$"},          {"\\$", ""},
                                                 {"\\ ", ""},          {" ", ""},
                                                 {"mbox", "text"},     {",\\text{and}", ","},
                                                 {"\\text{and}", ","}, {"\\text{m}", "\\text{}"}};
constexpr std::array<std::string_view, 43> kRemoved = {
    "square",     "ways",       "integers",     "dollars",      "mph",
    "inches",     "hours",      "km",           "units",        "\\ldots",
    "sue",        "points",     "feet",         "minutes",      "digits",
    "cents",      "degrees",    "cm",           "gm",           "pounds",
    "meters",     "meals",      "edges",        "students",     "childrentickets",
    "multiples",  "\\text{s}",  "\\text{.}",    "\\text{\ns}",  "\\text{}^2",
    "\\text{}^3", "\\text{\n}", "\\text{}",     "\\mathrm{th}", "^\\circ",
    "^{\\circ}",  "\\;",        ",\\!",         "{,}",          "\"",
    "\\dots",     "<|im_end|>", "<|endoftext|>"};

size_t num_bytes_at(std::string_view text, size_t at) {
  size_t end = at + 1;
  while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) ++end;
  return end - at;
}

bool is_digit_at(std::string_view text, size_t at) {
  return at < text.size() && is_ascii_digit(text[at]);
}

std::string_view last_characters(std::string_view text, size_t count) {
  size_t at = text.size();
  for (size_t i = 0; i < count && at > 0; ++i) {
    --at;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  }
  return text.substr(at);
}

/// "command{..}" as what is in it; up to the first brace that closes, or the last one.
void unwrap(std::string& text, std::string_view command, bool to_last_brace) {
  std::string out;
  size_t at = 0;
  while (at < text.size()) {
    const bool is_command = is_at(text, at, command) && is_at(text, at + command.size(), "{");
    const size_t begin = at + command.size() + 1;
    size_t close = kNone;
    if (is_command) close = to_last_brace ? text.rfind('}') : text.find('}', begin);
    if (close == kNone || close < begin) {
      out += text[at++];
      continue;
    }
    out.append(text, begin, close - begin);
    at = close + 1;
  }
  text = std::move(out);
}

/// "frac12" as "frac{1}{2}", "sqrt2" as "sqrt{2}": characters that have no brace of their own.
void brace_arguments(std::string& text, std::string_view command, int count) {
  std::string out;
  size_t at = 0;
  while (at < text.size()) {
    size_t end = at + command.size();
    std::string arguments;
    if (is_at(text, at, command) && end < text.size() && text[end] != '{') {
      int left = count;
      for (; left > 0 && end < text.size(); --left) {
        const size_t size = num_bytes_at(text, end);
        arguments.append("{").append(text, end, size).append("}");
        end += size;
      }
      if (left > 0) arguments.clear();
    }
    if (arguments.empty()) {
      out += text[at++];
    } else {
      out.append(command).append(arguments);
      at = end;
    }
  }
  text = std::move(out);
}

std::string normalized(std::string_view answer) {
  std::string text(answer.substr(answer.rfind('=') + 1));
  for (const auto& [from, to] : kSubstitutions) replace_all(text, from, to);
  for (const std::string_view removed : kRemoved) replace_all(text, removed, "");
  const size_t first = text.find('$');
  const size_t second = first == kNone ? kNone : text.find('$', first + 1);
  if (second != kNone) text = text.substr(first + 1, second - first - 1);
  unwrap(text, "\\text", false);
  unwrap(text, "\\textbf", false);
  unwrap(text, "\\overline", false);
  unwrap(text, "\\boxed", true);
  brace_arguments(text, "frac", 2);
  brace_arguments(text, "sqrt", 1);
  std::erase(text, '$');
  const auto is_digit_or_comma = [](char c) { return is_ascii_digit(c) || c == ','; };
  if (std::all_of(text.begin(), text.end(), is_digit_or_comma) &&
      std::any_of(text.begin(), text.end(), is_ascii_digit)) {
    std::erase(text, ',');
  }
  return std::string(trim(text));
}

/// What follows the last "answer:" on its line, whatever its case and the white space about it.
std::optional<std::string_view> last_answer(std::string_view text) {
  constexpr std::string_view kAnswer = "answer";
  std::optional<std::string_view> found;
  for (size_t at = 0; at + kAnswer.size() <= text.size();) {
    const bool is_answer =
        std::equal(kAnswer.begin(), kAnswer.end(), text.begin() + static_cast<std::ptrdiff_t>(at),
                   [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); });
    const size_t colon = is_answer ? skip_space(text, at + kAnswer.size()) : kNone;
    if (!is_at(text, colon, ":")) {
      ++at;
      continue;
    }
    const size_t begin = skip_space(text, colon + 1);
    if (begin == text.size()) break;
    const size_t end = std::min(text.find('\n', begin), text.size());
    found = text.substr(begin, end - begin);
    at = end;
  }
  return found;
}

/// The whole part of a label, as text.
std::string whole_part(std::string_view label) {
  std::string text = normalized(label);
  // The rule reads it as Python's float() does: "1_000" is a number.
  for (size_t at = text.find('_'); at != kNone; at = text.find('_', at)) {
    if (at == 0 || !is_digit_at(text, at - 1) || !is_digit_at(text, at + 1)) break;
    text.erase(at, 1);
  }
  std::string_view digits = text;
  if (digits.starts_with('+')) digits.remove_prefix(1);
  double value = 0;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (read.ec != std::errc() || read.ptr != digits.data() + digits.size() ||
      !std::isfinite(value)) {
    fail(ErrorCode::kInvalidArgument, "the label '{}' is no number", label);
  }
  const double whole = std::trunc(value);
  return fmt::format("{:.0f}", whole == 0 ? 0.0 : whole);
}

}  // namespace

std::string dapo_answer(std::string_view response) {
  return normalized(last_answer(last_characters(response, kLastCharacters)).value_or("[INVALID]"));
}

double dapo_score(std::string_view response, std::string_view label) {
  if (label.size() > kMaxLabelBytes) {
    fail(ErrorCode::kInvalidArgument, "the label has {} bytes; at most {} are compared",
         label.size(), kMaxLabelBytes);
  }
  return dapo_answer(response) == whole_part(label) ? 1 : -1;
}

}  // namespace nibble
