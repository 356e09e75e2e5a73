#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace nibble {

/// An evaluated expression and the integers written in it ("84.5" holds 84 and 5), in order.
struct Arithmetic {
  double value = 0;
  std::vector<int64_t> integers;
};

/// Evaluates numbers, + - * / **, signs and parentheses, with Python's precedence and rules for
/// literals: no leading zeros in integers, ".5" and "84." are numbers; no exponents. White space is
/// free; a line break is so inside parentheses only. nullopt for anything else, division by zero,
/// a value that is not a finite real, more than 4096 bytes, nesting beyond 100 or an integer of
/// more than 18 digits.
std::optional<Arithmetic> evaluate_arithmetic(std::string_view text);

}  // namespace nibble
