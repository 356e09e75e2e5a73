#include "core/tokenizer/jinja_evaluator.h"

#include "core/base/fail.h"
#include "core/tokenizer/jinja_filters.h"
#include "core/tokenizer/jinja_methods.h"
#include "core/tokenizer/jinja_operators.h"
#include "core/tokenizer/jinja_scope.h"
#include "core/tokenizer/jinja_tests.h"
#include "core/tokenizer/jinja_text.h"

namespace nibble::jinja {

Value Evaluator::lookup(const std::string& name) const {
  for (const Frame* frame = frame_; frame != nullptr; frame = frame->parent) {
    const auto found = frame->variables.find(name);
    if (found != frame->variables.end()) return found->second;
  }
  if (is_function(name)) return runtime_.callable({Callable::Type::kFunction, name, Value()});
  return Value::undefined("'" + name + "' is undefined");
}

Value Evaluator::evaluate(const Expr& expr) {
  const Depth guard(*this, expr.line);
  const auto child = [&](size_t i) { return evaluate(*expr.children[i]); };
  switch (expr.kind) {
    case Expr::Kind::kLiteral:
      return expr.literal;
    case Expr::Kind::kName:
      return lookup(expr.text);
    case Expr::Kind::kList:
    case Expr::Kind::kTuple:
    case Expr::Kind::kDict:
      return evaluate_container(expr);
    case Expr::Kind::kNegative:
      return negate(runtime_, child(0));
    case Expr::Kind::kPositive: {
      const Value value = child(0);
      if (!value.is_number()) runtime_.error("unary + needs a number, not {}", value.type_name());
      return value.is_bool() ? Value::integer(value.as_int()) : value;
    }
    case Expr::Kind::kNot:
      return Value::boolean(!child(0).truthy());
    case Expr::Kind::kAnd: {
      Value left = child(0);
      return left.truthy() ? child(1) : left;
    }
    case Expr::Kind::kOr: {
      Value left = child(0);
      return left.truthy() ? left : child(1);
    }
    case Expr::Kind::kBinary: {
      const Value left = child(0);
      const Value right = child(1);
      runtime_.line = expr.line;
      return arithmetic(runtime_, expr.ops[0], left, right);
    }
    case Expr::Kind::kCompare:
      return evaluate_compare(expr);
    case Expr::Kind::kConcat:
      return evaluate_concat(expr);
    case Expr::Kind::kConditional:
      if (child(1).truthy()) return child(0);
      if (expr.children[2] != nullptr) return child(2);
      return Value::undefined("the inline if was false and has no else");
    case Expr::Kind::kAttribute:
      return get_attribute(runtime_, child(0), expr.text);
    case Expr::Kind::kItem: {
      const Value container = child(0);
      return get_item(runtime_, container, child(1));
    }
    case Expr::Kind::kSlice: {
      const Value container = child(0);
      List bounds;
      for (size_t i = 1; i < 4; ++i) bounds.push_back(expr.children[i] ? child(i) : Value());
      return get_slice(runtime_, container, bounds);
    }
    case Expr::Kind::kCall:
      return evaluate_call(expr);
    case Expr::Kind::kFilter:
      return evaluate_filter(expr, nullptr);
    case Expr::Kind::kTest: {
      const Value value = child(0);
      const Arguments arguments = evaluate_arguments(expr.arguments);
      runtime_.line = expr.line;
      return Value::boolean(expr.test->holds(runtime_, value, arguments));
    }
  }
  NIBBLE_CHECK(false, "unknown expression kind {}", static_cast<int>(expr.kind));
}

Value Evaluator::evaluate_container(const Expr& expr) {
  if (expr.kind != Expr::Kind::kDict) {
    List items;
    for (const ExprPtr& item : expr.children) items.push_back(evaluate(*item));
    return expr.kind == Expr::Kind::kList ? runtime_.list(std::move(items))
                                          : runtime_.tuple(std::move(items));
  }
  Dict dict;
  for (size_t i = 0; i < expr.children.size(); i += 2) {
    Value key = evaluate(*expr.children[i]);
    if (!key.is_none() && !key.is_number() && !key.is_string()) {
      runtime_.error("a {} cannot be the key of a mapping", key.type_name());
    }
    dict.set(std::move(key), evaluate(*expr.children[i + 1]));
  }
  return runtime_.dict(std::move(dict));
}

Value Evaluator::evaluate_compare(const Expr& expr) {
  Value left = evaluate(*expr.children[0]);
  for (size_t i = 0; i < expr.ops.size(); ++i) {
    Value right = evaluate(*expr.children[i + 1]);
    runtime_.line = expr.line;
    if (!compare(runtime_, expr.ops[i], left, right)) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Evaluator::evaluate_concat(const Expr& expr) {
  std::string out;
  for (const ExprPtr& part : expr.children) {
    const std::string text = to_str(runtime_, evaluate(*part));
    runtime_.check_text_size(out.size(), text.size());
    out += text;
  }
  return runtime_.text(std::move(out));
}

Value Evaluator::evaluate_filter(const Expr& expr, const Value* innermost) {
  const Depth guard(*this, expr.line);
  Value value;
  if (expr.children[0] == nullptr) {
    NIBBLE_CHECK(innermost != nullptr, "a filter chain without a value");
    value = *innermost;
  } else if (innermost != nullptr) {
    value = evaluate_filter(*expr.children[0], innermost);
  } else {
    value = evaluate(*expr.children[0]);
  }
  const Arguments arguments = evaluate_arguments(expr.arguments);
  runtime_.line = expr.line;
  return expr.filter->apply(runtime_, value, arguments);
}

Arguments Evaluator::evaluate_arguments(const CallArguments& written) {
  Arguments arguments;
  for (const ExprPtr& value : written.positional) arguments.positional.push_back(evaluate(*value));
  for (const auto& [name, value] : written.keywords) {
    arguments.keywords.emplace_back(name, evaluate(*value));
  }
  return arguments;
}

Value Evaluator::evaluate_call(const Expr& expr) {
  const Value callee = evaluate(*expr.children[0]);
  const Arguments arguments = evaluate_arguments(expr.arguments);
  runtime_.line = expr.line;
  if (const auto* undefined = callee.get_if<Undefined>()) runtime_.error("{}", *undefined->what);
  const Callable* callable = callee.callable();
  if (callable == nullptr) runtime_.error("a {} cannot be called", callee.type_name());
  switch (callable->type) {
    case Callable::Type::kFunction:
      return call_function(runtime_, callable->name, arguments);
    case Callable::Type::kMethod:
      return call_method(runtime_, *callable, arguments);
    case Callable::Type::kMacro:
      return call_macro(*callable, arguments);
  }
  NIBBLE_CHECK(false, "unknown callable type {}", static_cast<int>(callable->type));
}

Value Evaluator::call_macro(const Callable& callable, const Arguments& arguments) {
  const Statement& macro = *callable.macro;
  const size_t given = arguments.positional.size();
  if (given > macro.parameters.size()) {
    runtime_.error("macro '{}' takes at most {} arguments, got {}", macro.text,
                   macro.parameters.size(), given);
  }
  const Scope scope(*this, callable.frame);
  auto& variables = frame_->variables;
  for (size_t i = 0; i < given; ++i) {
    variables[macro.parameters[i].name] = arguments.positional[i];
  }
  for (const auto& [name, value] : arguments.keywords) {
    bool known = false;
    for (const Parameter& parameter : macro.parameters) {
      if (parameter.name != name) continue;
      known = variables.emplace(parameter.name, value).second;
    }
    if (!known) runtime_.error("macro '{}' cannot take the argument '{}'", macro.text, name);
  }
  for (const Parameter& parameter : macro.parameters) {
    if (variables.count(parameter.name) > 0) continue;
    Value absent = parameter.absent != nullptr
                       ? evaluate(*parameter.absent)
                       : Value::undefined("parameter '" + parameter.name + "' was not provided");
    frame_->variables[parameter.name] = std::move(absent);
  }
  return runtime_.text(capture(macro.body));
}

}  // namespace nibble::jinja
