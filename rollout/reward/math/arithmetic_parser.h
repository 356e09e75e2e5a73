#pragma once

#include <optional>
#include <string_view>

#include "rollout/reward/math/expression.h"

namespace nibble::math {

/// Reads arithmetic without LaTeX: numbers ("4." too), + - * / ^ or ** and parentheses. A power
/// binds from the right; a product needs its sign. nullopt for anything else.
std::optional<Expression> parse_arithmetic(std::string_view text);

/// A decimal number written in digits and at most one point, "-" before it allowed.
std::optional<Expression> parse_plain_number(std::string_view text);

}  // namespace nibble::math
