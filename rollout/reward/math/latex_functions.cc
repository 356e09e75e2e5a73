#include <algorithm>
#include <array>
#include <utility>

#include "rollout/reward/math/latex_grammar.h"
#include "rollout/reward/math/math_limits.h"

namespace nibble::math {
namespace {

constexpr std::array kFunctions = {"sin",    "cos",    "tan",    "csc",    "sec",    "cot",
                                   "arcsin", "arccos", "arctan", "arccsc", "arcsec", "arccot",
                                   "sinh",   "cosh",   "tanh",   "arsinh", "arcosh", "artanh"};

bool is_function_name(const std::string& name) {
  return std::find(kFunctions.begin(), kFunctions.end(), name) != kFunctions.end();
}

}  // namespace

Expression LatexGrammar::command() {
  const Level level(*this);
  const std::string name = take().text;
  if (name == "pi") return make_leaf(Op::kPi);
  if (name == "infty") return make_leaf(Op::kInfinity);
  if (name == "gamma") return make_leaf(Op::kGamma);
  if (name == "I") return make_leaf(Op::kImaginary);
  if (name == "emptyset") return make_node(Op::kSet, {});
  if (name.starts_with("set") && name.size() == 4) return make_leaf(Op::kNamedSet, name.substr(3));
  if (name == "frac" || name == "dfrac" || name == "tfrac" || name == "cfrac") {
    const Expression top = scalar(braced());
    return divide(top, scalar(braced()));
  }
  if (name.ends_with("binom")) {
    Expression n = scalar(braced());
    return make_node(Op::kFunction, {std::move(n), scalar(braced())}, "binomial");
  }
  if (name == "sqrt") return root();
  if (name == "boxed") return braced();
  if (name == "lfloor") return make_node(Op::kFunction, {enclosed("rfloor")}, "floor");
  if (name == "lceil") return make_node(Op::kFunction, {enclosed("rceil")}, "ceiling");
  if (name == "lvert") return make_node(Op::kFunction, {enclosed("rvert")}, "abs");
  if (name == "sum") return series(Op::kSum);
  if (name == "prod") return series(Op::kProduct);
  if (name == "gcd" || name == "lcm" || name == "max" || name == "min") return of_several(name);
  return function(name);
}

/// {expression}.
Expression LatexGrammar::braced() {
  if (!token().is(TokenKind::kOpen, "{")) throw NotRead();
  ++at_;
  Expression x = sum();
  expect(TokenKind::kClose, "}");
  return x;
}

Expression LatexGrammar::enclosed(std::string_view close_command) {
  Expression x = scalar(sum());
  expect(TokenKind::kCommand, close_command);
  return x;
}

Expression LatexGrammar::root() {
  Expression degree = make_number(2);
  if (token().is(TokenKind::kOpen, "[")) {
    ++at_;
    degree = scalar(sum());
    expect(TokenKind::kClose, "]");
  }
  Expression base = scalar(braced());
  return make_node(Op::kPower, {std::move(base), divide(make_number(1), degree)});
}

Expression LatexGrammar::function(const std::string& name) {
  const bool is_logarithm = name == "log" || name == "ln";
  if (!is_logarithm && name != "exp" && !is_function_name(name)) throw NotRead();
  Expression base;
  Expression raised_to;
  for (int part = 0; part < 2; ++part) {
    if (token().is_operator("_") && is_logarithm && !base) {
      ++at_;
      base = token().is(TokenKind::kOpen, "{") ? scalar(braced()) : atom();
    } else if (token().is_operator("^") && !raised_to) {
      raised_to = exponent();
    }
  }
  const Expression argument = function_argument();
  Expression result;
  if (is_logarithm) {
    if (!base) base = name == "ln" ? make_leaf(Op::kEuler) : make_number(10);
    result = make_node(Op::kFunction, {argument, base}, "log");
  } else if (name == "exp") {
    result = make_node(Op::kPower, {make_leaf(Op::kEuler), argument});
  } else if (raised_to && is_number(raised_to) && raised_to->number == -1 && name[0] != 'a') {
    return make_node(Op::kFunction, {argument}, (name.ends_with("h") ? "ar" : "arc") + name);
  } else {
    result = make_node(Op::kFunction, {argument}, name);
  }
  return raised_to ? make_node(Op::kPower, {result, raised_to}) : result;
}

/// In parentheses, or the product that follows.
Expression LatexGrammar::function_argument() {
  if (token().is(TokenKind::kOpen, "(")) return scalar(bracketed());
  return scalar(product(/*with_functions=*/false));
}

/// \sum_{k=1}^{n} and what it ranges over.
Expression LatexGrammar::series(Op op) {
  Expression last;
  if (token().is_operator("^")) last = exponent();
  expect(TokenKind::kOperator, "_");
  expect(TokenKind::kOpen, "{");
  const Token variable = take();
  if (variable.kind != TokenKind::kSymbol) throw NotRead();
  expect(TokenKind::kOperator, "=");
  Expression first = scalar(sum());
  expect(TokenKind::kClose, "}");
  if (!last) last = exponent();
  Expression body = scalar(product(/*with_functions=*/true));
  return make_node(op, {std::move(body), std::move(first), std::move(last)}, variable.text);
}

Expression LatexGrammar::of_several(const std::string& name) {
  expect(TokenKind::kOpen, "(");
  Elements args;
  while (true) {
    args.push_back(scalar(sum()));
    if (args.size() > kMaxElements) throw NotRead();
    if (token().kind != TokenKind::kComma) break;
    ++at_;
  }
  expect(TokenKind::kClose, ")");
  return make_node(Op::kFunction, std::move(args), name);
}

Expression LatexGrammar::matrix() {
  const Level level(*this);
  const std::string kind = take().text;
  const bool is_determinant = kind == "begindet";
  if (!is_determinant && kind != "begin") throw NotRead();
  Elements elements;
  size_t columns = 0;
  size_t row = 0;
  while (true) {
    const Expression x = scalar(sum());
    if (is_matrix(x) || elements.size() >= kMaxElements) throw NotRead();
    elements.push_back(x);
    ++row;
    if (token().kind == TokenKind::kAmpersand) {
      ++at_;
      continue;
    }
    if (columns != 0 && row != columns) throw NotRead();
    columns = std::exchange(row, 0);
    if (token().kind == TokenKind::kRow) {
      ++at_;
      if (token().kind != TokenKind::kEnvironment) continue;
    }
    break;
  }
  expect(TokenKind::kEnvironment, is_determinant ? "enddet" : "end");
  const Expression result = make_matrix(std::move(elements), static_cast<int>(columns));
  if (!is_determinant) return result;
  if (result->args.size() != columns * columns) throw NotRead();
  return make_node(Op::kFunction, result->args, "determinant");
}

}  // namespace nibble::math
