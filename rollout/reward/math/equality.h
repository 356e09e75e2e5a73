#pragma once

#include "rollout/reward/math/expression.h"

namespace nibble::math {

/// Whether an answer says what the label says.
///   equations    the value of x = 5 counts beside a label 5, and 5 beside x = 5; two equations are
///                equal where their sides differ by the same, or by a constant multiple (of several
///                symbols)
///   inequalities either way round, and beside the set of their solutions
///   sets         in any order; a tuple in its order; an open interval is a pair too
///   terms        are_equal_scalars
bool are_equal_answers(const Expression& label, const Expression& answer);

}  // namespace nibble::math
