#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "rollout/reward/math/expression.h"

namespace nibble::math {

/// Arithmetic or a number in a text without LaTeX, with what has to stand before it (the beginning,
/// white space or "=", then "**" or a currency sign) and behind it.
struct PlainSpan {
  size_t begin = 0;
  size_t end = 0;
  std::string_view text;  ///< arithmetic, or a number as it is written
  bool is_number = false;
  bool is_percent = false;
};

/// "3 + 4", "(1/2)": at least one sign of arithmetic between digits.
std::optional<PlainSpan> arithmetic_at(std::string_view text, size_t at);
/// "1,234.5", "-7", "12%", "$3".
std::optional<PlainSpan> number_at(std::string_view text, size_t at);
/// Arithmetic where there is some, else a number.
std::optional<PlainSpan> plain_span_at(std::string_view text, size_t at);

/// Null for arithmetic that cannot be read.
Expression read_plain(const PlainSpan& span);

}  // namespace nibble::math
