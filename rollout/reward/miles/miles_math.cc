#include "rollout/reward/miles/miles_math.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "core/base/fail.h"
#include "rollout/reward/math/scalar_equality.h"
#include "rollout/reward/math/text_scan.h"
#include "rollout/reward/miles/miles_expression.h"
#include "rollout/reward/miles/miles_normalize.h"
#include "rollout/reward/text/boxed.h"
#include "rollout/reward/text/text.h"

namespace nibble::miles {
namespace {

using math::is_at;

constexpr size_t kMaxAnswerBytes = 4 << 10;
constexpr std::string_view kBrackets = "()[]";

std::optional<std::string_view> boxed_answer(std::string_view text) {
  if (text.find("\\boxed") == std::string_view::npos) return std::nullopt;
  return last_boxed(text);
}

bool is_digit_at(std::string_view text, size_t at) {
  return at < text.size() && is_ascii_digit(text[at]);
}

/// An integer over an integer, with at most one other character behind each.
bool is_fraction(std::string_view text) {
  size_t at = text.starts_with('-') ? 1 : 0;
  const size_t top = at;
  while (is_digit_at(text, at)) ++at;
  if (at == top) return false;
  if (at < text.size() && text[at] != '/') ++at;
  if (!is_at(text, at, "/")) return false;
  const size_t bottom = ++at;
  while (is_digit_at(text, at)) ++at;
  const std::string_view digits = text.substr(bottom, at - bottom);
  return digits.find_first_not_of('0') != std::string_view::npos && at + 1 >= text.size();
}

/// The elements of a tuple or an interval; anything else is one element.
std::vector<std::string> split_elements(const std::string& text) {
  const std::string plain = without_thousands(text);
  if (plain.empty()) return {};
  const std::string inner = plain.size() > 2 ? plain.substr(1, plain.size() - 2) : "";
  const bool is_bracketed = plain.size() > 2 &&
                            kBrackets.find(plain.front()) != std::string_view::npos &&
                            kBrackets.find(plain.back()) != std::string_view::npos &&
                            inner.find_first_of(kBrackets) == std::string::npos;
  if (!is_bracketed) return {plain};
  std::vector<std::string> elements;
  size_t begin = 0;
  while (true) {
    const size_t comma = inner.find(',', begin);
    elements.emplace_back(trim(std::string_view(inner).substr(begin, comma - begin)));
    if (comma == std::string::npos) return elements;
    begin = comma + 1;
  }
}

/// Symbols of text, "sqrt" and "frac" aside: more than two are words, which are not computed with.
bool may_be_evaluated(std::string_view label, std::string_view answer) {
  std::string text = fmt::format("({})-({})", label, answer);
  for (const std::string_view power : {"^{", "^("}) {
    if (text.find(power) != std::string::npos) return false;
  }
  for (size_t at = text.find('^'); at != std::string::npos; at = text.find('^', at + 1)) {
    size_t end = at + 1;
    while (is_digit_at(text, end)) ++end;
    // Powers of powers and exponents of two digits are left alone.
    if (end > at + 2 || (end > at + 1 && is_at(text, end, "^"))) return false;
  }
  math::replace_all(text, "sqrt", "");
  math::replace_all(text, "frac", "");
  return num_distinct_letters(text) <= 2;
}

bool are_equal_elements(const std::string& label, const std::string& answer) {
  if (is_fraction(label) && is_fraction(answer)) return label == answer;
  if (is_integer_text(label) != is_integer_text(answer)) return false;
  if (!may_be_evaluated(label, answer)) return false;
  const auto a = parse_expression(label);
  const auto b = parse_expression(answer);
  return a && b && math::agree_at_points(*a, *b);
}

bool are_equal_symbolically(const std::string& answer, const std::string& label) {
  if (answer == label) return true;
  if (answer.empty()) return false;
  const auto label_elements = split_elements(label);
  const auto answer_elements = split_elements(answer);
  if (label_elements.size() > 1 &&
      (label.front() != answer.front() || label.back() != answer.back())) {
    return false;
  }
  return !label_elements.empty() &&
         std::equal(label_elements.begin(), label_elements.end(), answer_elements.begin(),
                    answer_elements.end(), are_equal_elements);
}

}  // namespace

bool is_right_boxed_answer(std::string_view response, std::string_view label) {
  if (label.empty()) fail(ErrorCode::kInvalidArgument, "the label is empty");
  if (label.size() > kMaxAnswerBytes) {
    fail(ErrorCode::kInvalidArgument, "the label has {} bytes; at most {} are compared",
         label.size(), kMaxAnswerBytes);
  }
  std::optional<std::string_view> right = label;
  if (label.find("\\boxed") != std::string_view::npos) right = boxed_answer(label);
  if (!right) fail(ErrorCode::kInvalidArgument, "the label '{}' has an open \\boxed", label);
  const auto answer = boxed_answer(response);
  if (!answer || answer->size() > kMaxAnswerBytes) return false;
  if (mathd_normalized(*answer) == mathd_normalized(*right)) return true;
  return are_equal_symbolically(normalized(*answer), normalized(*right));
}

std::string_view behind_thinking(std::string_view response) {
  constexpr std::string_view kThink = "</think>";
  constexpr std::string_view kResponse = "###Response";
  if (const size_t at = response.rfind(kThink); at != std::string_view::npos) {
    return response.substr(at + kThink.size());
  }
  const size_t at = response.find(kResponse);
  if (at == std::string_view::npos) return {};
  const std::string_view rest = response.substr(at + kResponse.size());
  return rest.substr(0, rest.find(kResponse));
}

}  // namespace nibble::miles
