#include "rollout/reward/math/equality.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "rollout/reward/math/real_set.h"
#include "rollout/reward/math/relation_equality.h"
#include "rollout/reward/math/scalar_equality.h"
#include "rollout/reward/math/symbol_shape.h"

namespace nibble::math {
namespace {

bool is_assignment(const Expression& x) {
  if (!is_equation(x)) return false;
  const Expression& first = x->op == Op::kRelations ? x->args[0] : x;
  return is_of_symbols(first->args[0]);
}

Expression last_side(const Expression& x) {
  return x->op == Op::kRelations ? last_side(x->args.back()) : x->args[1];
}

/// a = b = c of symbols a is a = c.
Expression shortened(const Expression& x) {
  const Expression& first = x->op == Op::kRelations ? x->args[0] : x;
  return make_node(Op::kRelation, {first->args[0], last_side(x)}, "=");
}

/// Elements that are written twice once.
std::vector<Expression> distinct(const Expression& set) {
  std::vector<Expression> result;
  for (const Expression& x : set->args) {
    if (std::none_of(result.begin(), result.end(),
                     [&](const Expression& other) { return is_same(x, other); })) {
      result.push_back(x);
    }
  }
  return result;
}

bool equal_in_order(const std::vector<Expression>& a, const std::vector<Expression>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), are_equal_answers);
}

bool equal_in_any_order(const std::vector<Expression>& a, const std::vector<Expression>& b) {
  if (a.size() != b.size()) return false;
  std::vector<bool> taken(b.size());
  for (const Expression& x : a) {
    size_t at = 0;
    while (at < b.size() && (taken[at] || !are_equal_answers(x, b[at]))) ++at;
    if (at == b.size()) return false;
    taken[at] = true;
  }
  return true;
}

bool is_list(const Expression& x) { return x->op == Op::kSet || x->op == Op::kTuple; }

bool equal_lists(const Expression& label, const Expression& answer) {
  if (label->op == Op::kSet) {
    const auto elements = answer->op == Op::kSet ? distinct(answer) : answer->args;
    return equal_in_any_order(distinct(label), elements);
  }
  // A tuple keeps its order, also beside a list without parentheses.
  return equal_in_order(label->args, answer->op == Op::kSet ? distinct(answer) : answer->args);
}

bool is_open_interval(const Expression& x) {
  return x->op == Op::kInterval && x->left_open && x->right_open;
}

Expression pair_of(const Expression& interval) { return make_node(Op::kTuple, interval->args); }

Expression as_list(const Expression& x) {
  return is_scalar(x) || is_relation(x) ? make_node(Op::kSet, {x}) : x;
}

bool equal_intervals(const Expression& a, const Expression& b) {
  return a->left_open == b->left_open && a->right_open == b->right_open &&
         are_equal_answers(a->args[0], b->args[0]) && are_equal_answers(a->args[1], b->args[1]);
}

bool equal_sets(const Expression& label, const Expression& answer) {
  const Expression a = as_list(label);
  const Expression b = as_list(answer);
  if (a->op == Op::kInterval && b->op == Op::kInterval) return equal_intervals(a, b);
  if (is_list(a) && is_list(b)) return equal_lists(a, b);
  if (is_open_interval(a) && is_list(b)) return equal_lists(pair_of(a), b);
  if (is_list(a) && is_open_interval(b)) return equal_lists(a, pair_of(b));
  if (!is_set(a) || !is_set(b)) return false;
  const auto left = RealSet::of(a);
  const auto right = RealSet::of(b);
  if (left && right) return *left == *right;
  return a->op == b->op && a->op != Op::kDifference && !a->args.empty() &&
         equal_in_any_order(a->args, b->args);
}

}  // namespace

bool are_equal_answers(const Expression& label, const Expression& answer) {
  Expression a = label;
  Expression b = answer;
  const bool is_label_assignment = is_assignment(a);
  const bool is_answer_equation = is_equation(b);
  if (is_label_assignment) a = shortened(a);
  if (is_assignment(b)) b = shortened(b);
  if (is_answer_equation && !is_equation(a)) {
    b = last_side(b);
  } else if (is_label_assignment && !is_answer_equation) {
    a = last_side(a);
  }
  if (is_relation(a) && is_set(b)) return is_solution_set(a, b);
  if (is_same(a, b)) return !is_scalar(a) || !is_undefined(a);
  if (is_relation(a) && is_relation(b)) return are_equal_relations(a, b);
  if (is_relation(a) || is_relation(b)) return false;
  if (!is_scalar(a) || !is_scalar(b)) return equal_sets(a, b);
  return are_equal_scalars(a, b);
}

}  // namespace nibble::math
