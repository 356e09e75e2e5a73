// The part of ExpressionParser that follows a primary: attributes, subscripts, calls, filters,
// tests.
#include <algorithm>
#include <charconv>

#include "core/tokenizer/jinja_expression_parser.h"
#include "core/tokenizer/jinja_filters.h"
#include "core/tokenizer/jinja_tests.h"

namespace nibble::jinja {

ExprPtr ExpressionParser::parse_filters_and_tests(ExprPtr node) {
  while (true) {
    if (skip_operator("|")) {
      node = parse_filter(std::move(node));
    } else if (at_name("is")) {
      node = parse_test(std::move(node));
    } else if (at_operator("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExprPtr ExpressionParser::parse_filter_chain(bool first_without_pipe) {
  ExprPtr node;
  if (first_without_pipe) node = parse_filter(nullptr);
  while (skip_operator("|")) node = parse_filter(std::move(node));
  return node;
}

ExprPtr ExpressionParser::parse_filter(ExprPtr input) {
  std::vector<ExprPtr> children;
  children.push_back(std::move(input));
  ExprPtr node = make(Expr::Kind::kFilter, std::move(children));
  node->text = expect_identifier();
  node->filter = find_filter(node->text);
  if (node->filter == nullptr) error(fmt::format("unknown filter '{}'", node->text));
  if (at_operator("(")) {
    int depth = 0;
    node->arguments = parse_arguments(depth);
    deepen(*node, depth);
  }
  return node;
}

bool ExpressionParser::at_test_argument() const {
  switch (peek().type) {
    case Token::Type::kName:
      return !at_name("else") && !at_name("or") && !at_name("and");
    case Token::Type::kString:
    case Token::Type::kInteger:
    case Token::Type::kFloat:
      return true;
    default:
      return at_operator("[") || at_operator("{");
  }
}

ExprPtr ExpressionParser::parse_test(ExprPtr input) {
  expect_name("is");
  const bool negated = skip_name("not");
  ExprPtr node = make(Expr::Kind::kTest, std::move(input));
  node->text = expect_identifier();
  node->test = find_test(node->text);
  if (node->test == nullptr) error(fmt::format("unknown test '{}'", node->text));
  if (at_operator("(")) {
    int depth = 0;
    node->arguments = parse_arguments(depth);
    deepen(*node, depth);
  } else if (at_test_argument()) {
    if (at_name("is")) error("tests cannot be chained with 'is'");
    ExprPtr argument = parse_postfix(parse_primary());
    deepen(*node, argument->depth);
    node->arguments.positional.push_back(std::move(argument));
  }
  return negated ? make(Expr::Kind::kNot, std::move(node)) : std::move(node);
}

ExprPtr ExpressionParser::parse_attribute(ExprPtr node) {
  expect_operator(".");
  if (at(Token::Type::kInteger)) {
    ExprPtr index = make(Expr::Kind::kLiteral, nullptr);
    const Token token = next();
    int64_t value = 0;
    const char* end = token.text.data() + token.text.size();
    if (std::from_chars(token.text.data(), end, value).ec != std::errc()) {
      error("the index " + token.text + " is too large");
    }
    index->literal = Value::integer(value);
    return make(Expr::Kind::kItem, std::move(node), std::move(index));
  }
  ExprPtr attribute = make(Expr::Kind::kAttribute, std::move(node));
  attribute->text = expect_identifier();
  return attribute;
}

ExprPtr ExpressionParser::parse_subscript(ExprPtr node) {
  expect_operator("[");
  const auto at_bound = [&] { return !at_operator(":") && !at_operator("]"); };
  std::vector<ExprPtr> children;
  children.push_back(std::move(node));
  children.push_back(at_bound() ? parse_expression() : nullptr);
  if (!at_operator(":")) {
    if (children[1] == nullptr) error("expected a subscript");
    expect_operator("]");
    return make(Expr::Kind::kItem, std::move(children));
  }
  while (children.size() < 4 && skip_operator(":")) {
    children.push_back(at_bound() ? parse_expression() : nullptr);
  }
  children.resize(4);
  expect_operator("]");
  return make(Expr::Kind::kSlice, std::move(children));
}

ExprPtr ExpressionParser::parse_call(ExprPtr node) {
  ExprPtr call = make(Expr::Kind::kCall, std::move(node));
  int depth = 0;
  call->arguments = parse_arguments(depth);
  deepen(*call, depth);
  return call;
}

CallArguments ExpressionParser::parse_arguments(int& depth) {
  expect_operator("(");
  CallArguments arguments;
  while (!at_operator(")")) {
    if (at_operator("*") || at_operator("**")) error("*args and **kwargs are not supported");
    const bool keyword = at(Token::Type::kName) && at_operator("=", 1);
    std::string name;
    if (keyword) {
      name = next().text;
      next();
    } else if (!arguments.keywords.empty()) {
      error("a positional argument follows a keyword argument");
    }
    ExprPtr value = parse_expression();
    depth = std::max(depth, value->depth);
    if (keyword) {
      arguments.keywords.emplace_back(std::move(name), std::move(value));
    } else {
      arguments.positional.push_back(std::move(value));
    }
    if (!at_operator(")")) expect_operator(",");
  }
  next();
  return arguments;
}

}  // namespace nibble::jinja
