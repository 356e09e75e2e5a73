#pragma once

#include <optional>
#include <string_view>

#include "rollout/reward/math/expression.h"

namespace nibble::math {

/// Reads an answer in normalized LaTeX (latex_normalize.h): expressions, relations, sets,
/// intervals, tuples, matrices and lists of these ("1, 2" is the set of both, "12,345" a number).
/// nullopt for what is no mathematics of ours and for what exceeds math_limits.h.
std::optional<Expression> parse_latex(std::string_view latex);

}  // namespace nibble::math
