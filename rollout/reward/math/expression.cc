#include "rollout/reward/math/expression.h"

#include <algorithm>
#include <set>
#include <utility>

namespace nibble::math {
namespace {

void append_terms(Op op, const Expression& x, std::vector<Expression>& terms) {
  if (x->op == op) {
    terms.insert(terms.end(), x->args.begin(), x->args.end());
  } else {
    terms.push_back(x);
  }
}

Expression flat(Op op, const Expression& a, const Expression& b) {
  std::vector<Expression> terms;
  append_terms(op, a, terms);
  append_terms(op, b, terms);
  return make_node(op, std::move(terms));
}

Expression map_elements(const Expression& matrix, const auto& function) {
  std::vector<Expression> elements;
  for (const Expression& element : matrix->args) elements.push_back(function(element));
  return make_matrix(std::move(elements), matrix->columns);
}

bool is_same_in_any_order(const Expression& a, const Expression& b) {
  std::vector<bool> taken(b->args.size());
  for (const Expression& element : a->args) {
    size_t at = 0;
    while (at < taken.size() && (taken[at] || !is_same(element, b->args[at]))) ++at;
    if (at == taken.size()) return false;
    taken[at] = true;
  }
  return true;
}

void collect_symbols(const Expression& x, std::set<std::string>& names) {
  if (x->op == Op::kSymbol) names.insert(x->name);
  if (x->op == Op::kSum || x->op == Op::kProduct) {
    std::set<std::string> inner;
    for (const Expression& arg : x->args) collect_symbols(arg, inner);
    inner.erase(x->name);  // what it ranges over
    names.merge(inner);
    return;
  }
  for (const Expression& arg : x->args) collect_symbols(arg, names);
}

}  // namespace

Expression make_number(Rational value, bool is_decimal) {
  auto node = std::make_shared<Node>();
  node->number = std::move(value);
  node->is_decimal = is_decimal;
  return node;
}

Expression make_leaf(Op op, std::string name) { return make_node(op, {}, std::move(name)); }

Expression make_node(Op op, std::vector<Expression> args, std::string name) {
  auto node = std::make_shared<Node>();
  node->op = op;
  node->name = std::move(name);
  node->args = std::move(args);
  return node;
}

Expression make_interval(Expression left, Expression right, bool left_open, bool right_open) {
  auto node = std::make_shared<Node>();
  node->op = Op::kInterval;
  node->left_open = left_open;
  node->right_open = right_open;
  node->args = {std::move(left), std::move(right)};
  return node;
}

Expression make_matrix(std::vector<Expression> elements, int columns) {
  auto node = std::make_shared<Node>();
  node->op = Op::kMatrix;
  node->columns = columns;
  node->args = std::move(elements);
  return node;
}

Expression negate(const Expression& x) {
  if (is_number(x)) return make_number(-x->number, x->is_decimal);
  return multiply(make_number(-1), x);
}

Expression add(const Expression& a, const Expression& b) {
  if (is_matrix(a) && is_matrix(b) && a->columns == b->columns &&
      a->args.size() == b->args.size()) {
    std::vector<Expression> elements;
    for (size_t i = 0; i < a->args.size(); ++i) {
      elements.push_back(add(a->args[i], b->args[i]));
    }
    return make_matrix(std::move(elements), a->columns);
  }
  return flat(Op::kAdd, a, b);
}

Expression multiply(const Expression& a, const Expression& b) {
  if (is_matrix(a) != is_matrix(b)) {
    const Expression& matrix = is_matrix(a) ? a : b;
    const Expression& factor = is_matrix(a) ? b : a;
    return map_elements(matrix, [&](const Expression& x) { return multiply(factor, x); });
  }
  return flat(Op::kMultiply, a, b);
}

Expression divide(const Expression& a, const Expression& b) {
  if (is_integer_number(a) && is_integer_number(b) && b->number != 0) {
    return make_number(a->number / b->number);
  }
  return multiply(a, make_node(Op::kPower, {b, make_number(-1)}));
}

bool is_set(const Expression& x) {
  return x->op == Op::kSet || x->op == Op::kInterval || x->op == Op::kUnion ||
         x->op == Op::kIntersection || x->op == Op::kDifference || x->op == Op::kNamedSet;
}

bool is_relation(const Expression& x) { return x->op == Op::kRelation || x->op == Op::kRelations; }

bool is_equation(const Expression& x) {
  if (x->op == Op::kRelation) return x->name == "=";
  return x->op == Op::kRelations && std::all_of(x->args.begin(), x->args.end(), is_equation);
}

bool is_scalar(const Expression& x) { return !is_set(x) && !is_relation(x) && x->op != Op::kTuple; }

bool is_same(const Expression& a, const Expression& b) {
  if (a == b) return true;
  if (a->op != b->op || a->name != b->name || a->args.size() != b->args.size() ||
      a->columns != b->columns || a->left_open != b->left_open || a->right_open != b->right_open) {
    return false;
  }
  if (a->op == Op::kNumber) return a->number == b->number && a->is_decimal == b->is_decimal;
  if (a->op == Op::kSet || a->op == Op::kUnion || a->op == Op::kIntersection) {
    return is_same_in_any_order(a, b);
  }
  return std::equal(a->args.begin(), a->args.end(), b->args.begin(), is_same);
}

std::string leaf_text(const Expression& x) {
  if (x->op == Op::kSymbol) return x->name;
  if (x->op == Op::kPi) return "pi";
  if (x->op == Op::kInfinity) return "oo";
  return is_number(x) && !x->is_decimal ? x->number.str() : "";
}

std::vector<std::string> symbols_of(const Expression& x) {
  std::set<std::string> names;
  collect_symbols(x, names);
  return {names.begin(), names.end()};
}

}  // namespace nibble::math
