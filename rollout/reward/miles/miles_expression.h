#pragma once

#include <optional>
#include <string_view>

#include "rollout/reward/math/expression.h"

namespace nibble::miles {

/// Reads plain mathematics as SymPy's parser with implicit products does: every letter is a symbol
/// but in pi, sqrt, sin and the like; ^ or ** is a power that binds from the right, ! a factorial.
/// nullopt for anything else.
std::optional<math::Expression> parse_expression(std::string_view text);

}  // namespace nibble::miles
