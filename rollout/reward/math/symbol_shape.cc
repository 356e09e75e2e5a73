#include "rollout/reward/math/symbol_shape.h"

#include <algorithm>
#include <optional>

#include "rollout/reward/math/evaluate.h"

namespace nibble::math {

bool is_of_symbols(const Expression& x) {
  if (x->op == Op::kSymbol) return true;
  if (x->op == Op::kPower) {
    return is_of_symbols(x->args[0]) && is_number(x->args[1]) && x->args[1]->number == -1;
  }
  return !x->args.empty() && std::all_of(x->args.begin(), x->args.end(), is_of_symbols);
}

Expression interval_or_tuple(const Expression& left, const Expression& right, bool left_open,
                             bool right_open) {
  const std::optional<long double> low = real_value(left);
  const std::optional<long double> high = real_value(right);
  if (!low || !high) return make_interval(left, right, left_open, right_open);
  const bool is_open = left_open && right_open;
  const bool is_closed = !left_open && !right_open;
  if ((is_open && *high <= *low) || (is_closed && *high < *low)) {
    return make_node(Op::kTuple, {left, right});
  }
  if (*high < *low || (*high == *low && !is_closed)) return make_node(Op::kSet, {});
  if (*high == *low) return make_node(Op::kSet, {left});
  return make_interval(left, right, left_open || std::isinf(*low), right_open || std::isinf(*high));
}

}  // namespace nibble::math
