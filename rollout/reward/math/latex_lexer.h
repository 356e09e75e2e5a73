#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::math {

enum class TokenKind {
  kEnd,
  kNumber,    // 12, 1.5, .5, 1.5E3; text
  kPercent,   // 12%; text without the sign
  kSymbol,    // a letter, a Greek one, \text{..}: text is the name of the symbol
  kEuler,     // e
  kOperator,  // text: + - * / ^ _ ! = != < <= > >= ~= in notin pm cup cap setminus mod over
  kOpen,      // text: ( [ { \{
  kClose,     // text: ) ] } \}
  kBar,       // |
  kComma,
  kSemicolon,
  kAmpersand,
  kRow,         // two backslashes
  kCommand,     // text: frac sqrt binom sin .. lfloor .. pi infty; without the backslash
  kEnvironment  // \begin{pmatrix}: "begin", \end{vmatrix}: "enddet" and the like
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  bool is(TokenKind k, std::string_view t) const { return kind == k && text == t; }
  bool is_operator(std::string_view t) const { return is(TokenKind::kOperator, t); }
};

/// The tokens of normalized LaTeX (latex_normalize.h), white space and spacing commands left out,
/// the last one kEnd. nullopt for a character or command that mathematics does not have here.
/// Letters are symbols of their own, in lower case; but 'd' before a letter is a differential, one
/// symbol with it, as the reference reads it.
std::optional<std::vector<Token>> tokenize_latex(std::string_view latex);

}  // namespace nibble::math
