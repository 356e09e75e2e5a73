#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "rollout/reward/math/rational.h"

namespace nibble::math {

enum class Op {
  kNumber,     // number; is_decimal: written with a point
  kPercent,    // args[0] / 100
  kSymbol,     // name
  kPi,         //
  kEuler,      // e
  kGamma,      // Euler's constant
  kImaginary,  // the unit, written I
  kInfinity,   //
  kAdd,        // args, two or more
  kMultiply,   // args, two or more
  kPower,      // base, exponent
  kFunction,   // name: of functions.h, or of an undefined one: "f()"
  kSum,        // name: the variable; body, first, last
  kProduct,    // the same
  kMatrix,     // args by rows, `columns` in each
  kTuple,      //
  kSet,        // finite
  kInterval,   // two ends, left_open, right_open
  kUnion,      //
  kIntersection,
  kDifference,
  kNamedSet,   // name: N Z Q R C
  kRelation,   // name: = != < <= > >=; two sides
  kRelations,  // a chain: a < b < c is {a < b, b < c}
};

struct Node;
/// Shared, because parts of one expression become parts of others; never changed.
using Expression = std::shared_ptr<const Node>;

struct Node {
  Op op = Op::kNumber;
  std::string name;
  Rational number;
  bool is_decimal = false;
  bool left_open = false;
  bool right_open = false;
  int columns = 0;
  std::vector<Expression> args;
};

Expression make_number(Rational value, bool is_decimal = false);
Expression make_leaf(Op op, std::string name = "");
Expression make_node(Op op, std::vector<Expression> args, std::string name = "");
Expression make_interval(Expression left, Expression right, bool left_open, bool right_open);
Expression make_matrix(std::vector<Expression> elements, int columns);

/// -x; a number stays one, a matrix becomes that of its elements.
Expression negate(const Expression& x);
/// Sums and products of two, flat: the terms of either become terms of the result.
Expression add(const Expression& a, const Expression& b);
Expression multiply(const Expression& a, const Expression& b);
/// a / b; a number where both are integers and b is not 0.
Expression divide(const Expression& a, const Expression& b);

inline bool is_number(const Expression& x) { return x->op == Op::kNumber; }
inline bool is_integer_number(const Expression& x) {
  return is_number(x) && !x->is_decimal && is_integer(x->number);
}
inline bool is_matrix(const Expression& x) { return x->op == Op::kMatrix; }
/// A finite set, an interval, a set made of these, or a named one.
bool is_set(const Expression& x);
bool is_relation(const Expression& x);
bool is_equation(const Expression& x);
/// What can be a term or a factor: no set, tuple or relation.
bool is_scalar(const Expression& x);

/// Equal as written: the same tree. Elements of sets may come in any order.
bool is_same(const Expression& a, const Expression& b);

/// A number or symbol as text, "" for anything else.
std::string leaf_text(const Expression& x);

/// Names of the symbols that x depends on, sorted.
std::vector<std::string> symbols_of(const Expression& x);

}  // namespace nibble::math
