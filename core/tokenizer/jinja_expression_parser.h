#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

#include "core/tokenizer/jinja_ast.h"
#include "core/tokenizer/jinja_lexer.h"

namespace nibble::jinja {

/// Reads tokens and parses expressions, with Jinja's precedences. The statement parser builds on
/// it.
class ExpressionParser {
 public:
  ExpressionParser(std::vector<Token> tokens, std::string_view name)
      : tokens_(std::move(tokens)), name_(name) {}

 protected:
  const Token& peek(size_t ahead = 0) const;
  Token next();
  bool at(Token::Type type) const { return peek().type == type; }
  bool at_name(std::string_view text, size_t ahead = 0) const;
  bool at_operator(std::string_view text, size_t ahead = 0) const;
  bool skip_name(std::string_view text);
  bool skip_operator(std::string_view text);
  void expect_operator(std::string_view text);
  void expect_name(std::string_view text);
  std::string expect_identifier();
  [[noreturn]] void error(std::string_view message) const;

  int macros_ = 0;  ///< macro bodies around the current tag

  /// `a if b else c` and everything below.
  ExprPtr parse_expression();
  /// The same without a trailing `if`: {% for %} and {% if %} need it.
  ExprPtr parse_or();
  /// One expression, or a tuple without parentheses.
  ExprPtr parse_tuple(bool with_condition);
  /// The filters of {% set x | f %} and {% filter f %}; the innermost has a null child.
  ExprPtr parse_filter_chain(bool first_without_pipe);

 private:
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool with_filters);
  ExprPtr parse_primary();
  ExprPtr parse_parenthesis();
  ExprPtr parse_list();
  ExprPtr parse_dict();
  ExprPtr parse_postfix(ExprPtr node);
  ExprPtr parse_filters_and_tests(ExprPtr node);
  ExprPtr parse_filter(ExprPtr node);
  ExprPtr parse_test(ExprPtr node);
  ExprPtr parse_attribute(ExprPtr node);
  ExprPtr parse_subscript(ExprPtr node);
  ExprPtr parse_call(ExprPtr node);
  CallArguments parse_arguments(int& depth);
  bool at_tuple_end() const;
  bool at_test_argument() const;

  ExprPtr make(Expr::Kind kind, std::vector<ExprPtr> children);
  ExprPtr make(Expr::Kind kind, ExprPtr a, ExprPtr b = nullptr);
  void deepen(Expr& node, int child_depth) const;

  std::vector<Token> tokens_;  // the last one is kEnd
  size_t position_ = 0;
  int nesting_ = 0;  // of parse_expression
  std::string_view name_;
};

}  // namespace nibble::jinja
