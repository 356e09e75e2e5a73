#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "rollout/reward/math/expression.h"
#include "rollout/reward/math/math_limits.h"
#include "rollout/reward/math/value.h"

namespace nibble::math {

/// Computes expressions at one point: every symbol has a fixed rational value that depends on its
/// name and the number of the point. At point 0 all are positive.
class Evaluator {
 public:
  explicit Evaluator(int point) : point_(point) {}

  /// Gives one symbol a value, whatever the point.
  void set_symbol(std::string name, Value value);

  /// Not valid: undefined there, not a scalar, or not computed within kMaxEvaluationSteps, which
  /// count over the life of this object.
  Value value(const Expression& x);

  /// The steps are used up.
  bool is_exhausted() const { return steps_ > kMaxEvaluationSteps; }

 private:
  Value symbol(const std::string& name) const;
  Value function(const Expression& x);
  Value series(const Expression& x);
  Value determinant(const Expression& x);

  const int point_;
  std::string set_name_;
  Value set_value_;
  int64_t steps_ = 0;
};

/// The value of an expression without symbols.
Value constant_value(const Expression& x);

/// Of a real one, infinities included.
std::optional<long double> real_value(const Expression& x);

}  // namespace nibble::math
