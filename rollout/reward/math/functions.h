#pragma once

#include <string>
#include <vector>

#include "rollout/reward/math/value.h"

namespace nibble::math {

/// sin .. artanh, log (argument, base), abs, floor, ceiling, factorial, binomial, mod, gcd, lcm,
/// max, min of valid values. Not valid outside of their domain, for another name or number of
/// arguments.
Value apply_function(const std::string& name, const std::vector<Value>& args);

}  // namespace nibble::math
