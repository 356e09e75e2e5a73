#pragma once

#include "rollout/reward/math/expression.h"

namespace nibble::math {

/// Whether two terms are the same number or the same function of their symbols.
///   decimals     a number with a point equals what rounds to it at six places; beside an integer
///                it must be that integer
///   percents     p% equals p / 100 and, of whole numbers, p
///   symbols      compared by values at points, exactly where arithmetic is: x^2-1 = (x-1)(x+1).
///                A single symbol equals only itself, or the product of letters it is spelled with
///   matrices     element by element
bool are_equal_scalars(const Expression& label, const Expression& answer);

/// Whether two terms have the same values, at points where both are defined: no rounding of
/// decimals, no percents, no spelled words.
bool agree_at_points(const Expression& label, const Expression& answer);

}  // namespace nibble::math
