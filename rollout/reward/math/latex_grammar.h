#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rollout/reward/math/expression.h"
#include "rollout/reward/math/latex_lexer.h"

namespace nibble::math {

/// Recursive descent over the tokens of one answer; latex_grammar.cc has lists, relations and sets,
/// latex_arithmetic.cc terms and below, latex_functions.cc what begins with a command. Nothing is
/// read twice. For latex_parser.cc alone.
class LatexGrammar {
 public:
  /// Thrown where the text is none of the language; caught in parse_latex.
  struct NotRead {};

  explicit LatexGrammar(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  Expression whole();

 private:
  using Elements = std::vector<Expression>;

  // Lists, relations, sets: latex_grammar.cc
  std::vector<Elements> groups();
  Elements element();
  Expression relation();
  Expression difference();
  Expression set_union();
  Expression intersection();
  Expression set_operand();
  Expression bracketed();

  // Arithmetic: latex_arithmetic.cc
  Expression sum();
  Expression product(bool with_functions);
  Expression signed_factor(bool with_functions);
  Expression adjacent(bool with_functions);
  Expression postfixed();
  Expression power();
  Expression exponent();
  Expression atom();
  Expression symbol();
  Expression enclosed(std::string_view close_command);
  Expression between_bars();
  Expression number(const std::string& text);
  std::string subscript();

  // Commands: latex_functions.cc
  Expression command();
  Expression function(const std::string& name);
  Expression logarithm(const std::string& name, const std::string& base_text);
  Expression function_argument();
  Expression braced();
  Expression root();
  Expression series(Op op);
  Expression of_several(const std::string& name);
  Expression matrix();

  const Token& token(size_t ahead = 0) const;
  Token take();
  bool take_operator(std::string_view text);
  void expect(TokenKind kind, std::string_view text);
  bool begins_factor(bool with_functions) const;
  bool is_degree() const;
  bool is_call() const;
  size_t skip_braced(size_t at) const;
  void enter();
  void leave() { --depth_; }

  /// Counts the nesting of one rule.
  struct Level {
    explicit Level(LatexGrammar& g) : grammar(g) { grammar.enter(); }
    ~Level() { grammar.leave(); }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    LatexGrammar& grammar;
  };

  const std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int steps_ = 0;
  int open_bars_ = 0;
};

/// x if it can be a term, otherwise throws LatexGrammar::NotRead.
Expression scalar(Expression x);

}  // namespace nibble::math
