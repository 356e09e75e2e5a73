#include "core/tokenizer/jinja_expression_parser.h"

#include <algorithm>
#include <charconv>

#include "core/tokenizer/jinja_filters.h"
#include "core/tokenizer/jinja_tests.h"

namespace nibble::jinja {
namespace {

constexpr int kMaxNesting = 60;  // brackets inside brackets: each costs a dozen calls
constexpr int kMaxDepth = 200;   // operators inside operators

Value literal_text(std::string text) {
  return Value(Value::Data(std::make_shared<const std::string>(std::move(text))));
}

}  // namespace

const Token& ExpressionParser::peek(size_t ahead) const {
  return tokens_[std::min(position_ + ahead, tokens_.size() - 1)];
}

Token ExpressionParser::next() {
  Token token = peek();
  if (position_ + 1 < tokens_.size()) ++position_;
  return token;
}

bool ExpressionParser::at_name(std::string_view text, size_t ahead) const {
  return peek(ahead).type == Token::Type::kName && peek(ahead).text == text;
}

bool ExpressionParser::at_operator(std::string_view text, size_t ahead) const {
  return peek(ahead).type == Token::Type::kOperator && peek(ahead).text == text;
}

bool ExpressionParser::skip_name(std::string_view text) {
  if (!at_name(text)) return false;
  next();
  return true;
}

bool ExpressionParser::skip_operator(std::string_view text) {
  if (!at_operator(text)) return false;
  next();
  return true;
}

void ExpressionParser::expect_operator(std::string_view text) {
  if (!skip_operator(text)) {
    error(fmt::format("expected '{}', got '{}'", text, peek().text));
  }
}

void ExpressionParser::expect_name(std::string_view text) {
  if (!skip_name(text)) error(fmt::format("expected '{}', got '{}'", text, peek().text));
}

std::string ExpressionParser::expect_identifier() {
  if (!at(Token::Type::kName)) error(fmt::format("expected a name, got '{}'", peek().text));
  return next().text;
}

void ExpressionParser::error(std::string_view message) const {
  fail_at(name_, peek().line, message);
}

void ExpressionParser::deepen(Expr& node, int child_depth) const {
  node.depth = std::max(node.depth, 1 + child_depth);
  if (node.depth > kMaxDepth) error("an expression is nested too deep");
}

ExprPtr ExpressionParser::make(Expr::Kind kind, std::vector<ExprPtr> children) {
  auto node = std::make_unique<Expr>();
  node->kind = kind;
  node->line = peek().line;
  for (const ExprPtr& child : children) {
    if (child != nullptr) deepen(*node, child->depth);
  }
  node->children = std::move(children);
  return node;
}

ExprPtr ExpressionParser::make(Expr::Kind kind, ExprPtr a, ExprPtr b) {
  std::vector<ExprPtr> children;
  if (a != nullptr) children.push_back(std::move(a));
  if (b != nullptr) children.push_back(std::move(b));
  return make(kind, std::move(children));
}

ExprPtr ExpressionParser::parse_expression() {
  if (++nesting_ > kMaxNesting) error("an expression is nested too deep");
  ExprPtr value = parse_or();
  while (skip_name("if")) {
    ExprPtr condition = parse_or();
    ExprPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    std::vector<ExprPtr> children;
    children.push_back(std::move(value));
    children.push_back(std::move(condition));
    children.push_back(std::move(otherwise));
    value = make(Expr::Kind::kConditional, std::move(children));
  }
  --nesting_;
  return value;
}

ExprPtr ExpressionParser::parse_or() {
  ExprPtr left = parse_and();
  while (skip_name("or")) {
    ExprPtr right = parse_and();
    left = make(Expr::Kind::kOr, std::move(left), std::move(right));
  }
  return left;
}

ExprPtr ExpressionParser::parse_and() {
  ExprPtr left = parse_not();
  while (skip_name("and")) {
    ExprPtr right = parse_not();
    left = make(Expr::Kind::kAnd, std::move(left), std::move(right));
  }
  return left;
}

ExprPtr ExpressionParser::parse_not() {
  int count = 0;
  while (skip_name("not")) ++count;
  ExprPtr node = parse_compare();
  for (; count > 0; --count) node = make(Expr::Kind::kNot, std::move(node));
  return node;
}

ExprPtr ExpressionParser::parse_compare() {
  static constexpr std::pair<std::string_view, Op> kComparisons[] = {
      {"==", Op::kEq}, {"!=", Op::kNe}, {"<=", Op::kLe},
      {">=", Op::kGe}, {"<", Op::kLt},  {">", Op::kGt}};
  std::vector<ExprPtr> children;
  std::vector<Op> ops;
  children.push_back(parse_sum());
  while (true) {
    const auto found = std::find_if(std::begin(kComparisons), std::end(kComparisons),
                                    [&](const auto& entry) { return at_operator(entry.first); });
    if (found != std::end(kComparisons)) {
      next();
      ops.push_back(found->second);
    } else if (skip_name("in")) {
      ops.push_back(Op::kIn);
    } else if (at_name("not") && at_name("in", 1)) {
      next();
      next();
      ops.push_back(Op::kNotIn);
    } else {
      break;
    }
    children.push_back(parse_sum());
  }
  if (ops.empty()) return std::move(children[0]);
  ExprPtr node = make(Expr::Kind::kCompare, std::move(children));
  node->ops = std::move(ops);
  return node;
}

ExprPtr ExpressionParser::parse_sum() {
  ExprPtr left = parse_concat();
  while (at_operator("+") || at_operator("-")) {
    const Op op = at_operator("+") ? Op::kAdd : Op::kSub;
    next();
    ExprPtr right = parse_concat();
    left = make(Expr::Kind::kBinary, std::move(left), std::move(right));
    left->ops.push_back(op);
  }
  return left;
}

ExprPtr ExpressionParser::parse_concat() {
  std::vector<ExprPtr> parts;
  parts.push_back(parse_product());
  while (skip_operator("~")) parts.push_back(parse_product());
  if (parts.size() == 1) return std::move(parts[0]);
  return make(Expr::Kind::kConcat, std::move(parts));
}

ExprPtr ExpressionParser::parse_product() {
  ExprPtr left = parse_power();
  static constexpr std::pair<std::string_view, Op> kProducts[] = {
      {"*", Op::kMul}, {"/", Op::kDiv}, {"//", Op::kFloorDiv}, {"%", Op::kMod}};
  while (true) {
    const auto found = std::find_if(std::begin(kProducts), std::end(kProducts),
                                    [&](const auto& entry) { return at_operator(entry.first); });
    if (found == std::end(kProducts)) return left;
    next();
    const Op op = found->second;
    ExprPtr right = parse_power();
    left = make(Expr::Kind::kBinary, std::move(left), std::move(right));
    left->ops.push_back(op);
  }
}

ExprPtr ExpressionParser::parse_power() {
  ExprPtr left = parse_unary(true);
  while (skip_operator("**")) {
    ExprPtr right = parse_unary(true);
    left = make(Expr::Kind::kBinary, std::move(left), std::move(right));
    left->ops.push_back(Op::kPow);
  }
  return left;
}

ExprPtr ExpressionParser::parse_unary(bool with_filters) {
  if (++nesting_ > kMaxNesting) error("an expression is nested too deep");
  ExprPtr node;
  if (skip_operator("-")) {
    node = make(Expr::Kind::kNegative, parse_unary(false));
  } else if (skip_operator("+")) {
    node = make(Expr::Kind::kPositive, parse_unary(false));
  } else {
    node = parse_primary();
  }
  --nesting_;
  node = parse_postfix(std::move(node));
  return with_filters ? parse_filters_and_tests(std::move(node)) : std::move(node);
}

ExprPtr ExpressionParser::parse_primary() {
  if (at_operator("(")) return parse_parenthesis();
  if (at_operator("[")) return parse_list();
  if (at_operator("{")) return parse_dict();
  ExprPtr node = make(Expr::Kind::kLiteral, nullptr);
  const Token token = next();
  if (token.type == Token::Type::kName) {
    if (token.text == "true" || token.text == "True") {
      node->literal = Value::boolean(true);
    } else if (token.text == "false" || token.text == "False") {
      node->literal = Value::boolean(false);
    } else if (token.text != "none" && token.text != "None") {
      const bool implicit =
          token.text == "varargs" || token.text == "kwargs" || token.text == "caller";
      if (macros_ > 0 && implicit) error(token.text + " of macros is not supported");
      node->kind = Expr::Kind::kName;
      node->text = token.text;
    }
  } else if (token.type == Token::Type::kString) {
    std::string text = token.text;
    while (at(Token::Type::kString)) text += next().text;
    node->literal = literal_text(std::move(text));
  } else if (token.type == Token::Type::kInteger) {
    int64_t value = 0;
    const char* end = token.text.data() + token.text.size();
    if (std::from_chars(token.text.data(), end, value).ec != std::errc()) {
      fail_at(name_, token.line, "the number " + token.text + " is too large");
    }
    node->literal = Value::integer(value);
  } else if (token.type == Token::Type::kFloat) {
    double value = 0;
    (void)std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
    node->literal = Value::number(value);
  } else {
    fail_at(name_, token.line,
            token.type == Token::Type::kEnd ? "the template ends inside an expression"
                                            : fmt::format("unexpected '{}'", token.text));
  }
  return node;
}

bool ExpressionParser::at_tuple_end() const {
  return at(Token::Type::kVariableEnd) || at(Token::Type::kBlockEnd) || at_operator(")") ||
         at_name("in");
}

ExprPtr ExpressionParser::parse_tuple(bool with_condition) {
  const auto one = [&] { return with_condition ? parse_expression() : parse_or(); };
  if (at_tuple_end()) error("expected an expression");
  std::vector<ExprPtr> items;
  items.push_back(one());
  if (!at_operator(",")) return std::move(items[0]);
  while (skip_operator(",") && !at_tuple_end()) items.push_back(one());
  return make(Expr::Kind::kTuple, std::move(items));
}

ExprPtr ExpressionParser::parse_parenthesis() {
  expect_operator("(");
  ExprPtr node = at_operator(")") ? make(Expr::Kind::kTuple, nullptr) : parse_tuple(true);
  expect_operator(")");
  return node;
}

ExprPtr ExpressionParser::parse_list() {
  expect_operator("[");
  std::vector<ExprPtr> items;
  while (!at_operator("]")) {
    items.push_back(parse_expression());
    if (!at_operator("]")) expect_operator(",");
  }
  next();
  return make(Expr::Kind::kList, std::move(items));
}

ExprPtr ExpressionParser::parse_dict() {
  expect_operator("{");
  std::vector<ExprPtr> items;
  while (!at_operator("}")) {
    items.push_back(parse_expression());
    expect_operator(":");
    items.push_back(parse_expression());
    if (!at_operator("}")) expect_operator(",");
  }
  next();
  return make(Expr::Kind::kDict, std::move(items));
}

ExprPtr ExpressionParser::parse_postfix(ExprPtr node) {
  while (true) {
    if (at_operator(".")) {
      node = parse_attribute(std::move(node));
    } else if (at_operator("[")) {
      node = parse_subscript(std::move(node));
    } else if (at_operator("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

}  // namespace nibble::jinja
