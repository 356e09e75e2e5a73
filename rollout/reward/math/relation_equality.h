#pragma once

#include "rollout/reward/math/expression.h"

namespace nibble::math {

/// Whether two relations, or chains of them link by link, say the same (see equality.h).
bool are_equal_relations(const Expression& label, const Expression& answer);

/// Whether `set` is the set of solutions of a relation in one symbol, judged at the ends of the
/// set, at the root of a linear relation, beside these, and on a grid from -100 to 100.
bool is_solution_set(const Expression& relation, const Expression& set);

/// A division of a constant by zero.
bool is_undefined(const Expression& x);

}  // namespace nibble::math
