#pragma once

#include "rollout/reward/math/expression.h"

namespace nibble::math {

/// A symbol, or made of symbols alone: x, (x, y), f(x), A/S, ABC.
bool is_of_symbols(const Expression& x);

/// [a, b] and the like as an interval; but (a, b) is the pair where a >= b, a closed one of equal
/// ends is their set, and an infinite end is open.
Expression interval_or_tuple(const Expression& left, const Expression& right, bool left_open,
                             bool right_open);

}  // namespace nibble::math
