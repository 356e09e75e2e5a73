#include "rollout/reward/math/latex_lexer.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <utility>

#include "rollout/reward/math/math_limits.h"
#include "rollout/reward/text/text.h"

namespace nibble::math {
namespace {

using Pair = std::pair<std::string_view, std::string_view>;

constexpr std::array kGreek = {"alpha",   "beta",    "gamma",  "delta",    "epsilon",  "varepsilon",
                               "zeta",    "eta",     "theta",  "vartheta", "iota",     "kappa",
                               "lambda",  "mu",      "nu",     "xi",       "omicron",  "pi",
                               "varpi",   "rho",     "varrho", "sigma",    "varsigma", "tau",
                               "upsilon", "phi",     "varphi", "chi",      "psi",      "omega",
                               "Gamma",   "Delta",   "Theta",  "Lambda",   "Xi",       "Pi",
                               "Sigma",   "Upsilon", "Phi",    "Psi",      "Omega"};
constexpr std::array kSignCommands = {
    "angle",     "ell",       "hbar",        "nabla",        "triangle", "square",
    "imath",     "jmath",     "Re",          "Im",           "prime",    "wp",
    "sharp",     "flat",      "varnothing",  "bigstar",      "Diamond",  "clubsuit",
    "heartsuit", "spadesuit", "diamondsuit", "measuredangle"};
constexpr std::array kAccents = {
    "text",     "textit",  "textbf",         "textnormal", "mbox",      "mathbb",
    "mathbf",   "mathcal", "mathit",         "mathrm",     "mathfrak",  "mathsf",
    "mathscr",  "mathtt",  "mathnormal",     "boldsymbol", "bm",        "bar",
    "overline", "vec",     "overrightarrow", "tilde",      "widetilde", "hat",
    "dot",      "ddot",    "acute",          "breve",      "check",     "grave"};
constexpr std::array kPlainCommands = {
    "frac",   "sqrt",         "binom",  "tbinom", "dbinom",  "sum",    "prod",   "log",
    "ln",     "exp",          "sin",    "cos",    "tan",     "csc",    "sec",    "cot",
    "arcsin", "arccos",       "arctan", "arccsc", "arcsec",  "arccot", "sinh",   "cosh",
    "tanh",   "arsinh",       "arcosh", "artanh", "gcd",     "lcm",    "max",    "min",
    "lfloor", "rfloor",       "lceil",  "rceil",  "lvert",   "rvert",  "vert",   "infty",
    "boxed",  "emptyset",     "dfrac",  "tfrac",  "cfrac",   "langle", "rangle", "circ",
    "degree", "operatorname", "int",    "lim",    "partial", "iint"};
constexpr std::array<Pair, 25> kOperatorCommands = {
    Pair{"times", "*"}, {"cdot", "*"},  {"div", "/"},       {"over", "/"},
    {"mod", "mod"},     {"le", "<="},   {"leq", "<="},      {"leqslant", "<="},
    {"lt", "<"},        {"ge", ">="},   {"geq", ">="},      {"geqslant", ">="},
    {"gt", ">"},        {"ne", "!="},   {"neq", "!="},      {"equiv", "="},
    {"approx", "~="},   {"in", "in"},   {"notin", "notin"}, {"pm", "pm"},
    {"mp", "pm"},       {"cup", "cup"}, {"cap", "cap"},     {"setminus", "setminus"},
    {"mod", "mod"}};
constexpr std::array<Pair, 6> kBracketCommands = {Pair{"lbrace", "\\{"}, {"rbrace", "\\}"},
                                                  {"lbrack", "["},       {"rbrack", "]"},
                                                  {"lgroup", "("},       {"rgroup", ")"}};
constexpr std::array kSpaces = {"quad",       "qquad",        "thinspace", "medspace",
                                "thickspace", "negthinspace", "vspace",    "hfil"};

// Characters beyond ASCII, as UTF-8.
constexpr std::array<Pair, 30> kSigns = {
    Pair{"−", "-"}, {"×", "*"},  {"⋅", "*"},   {"∙", "*"},   {"∗", "*"},        {"∘", "*"},
    {"÷", "/"},     {"∕", "/"},  {"≤", "<="},  {"≦", "<="},  {"≥", ">="},       {"≧", ">="},
    {"≠", "!="},    {"≈", "~="}, {"≃", "~="},  {"≅", "~="},  {"≡", "="},        {"≔", "="},
    {"±", "pm"},    {"∓", "pm"}, {"∪", "cup"}, {"∩", "cap"}, {"∖", "setminus"}, {"∉", "notin"},
    {"∔", "+"},     {"⊕", "+"},  {"⊗", "*"},   {"⋆", "*"},   {"≪", "<"},        {"≫", ">"}};
constexpr std::array<Pair, 30> kGreekSigns = {
    Pair{"α", "alpha"}, {"β", "beta"},   {"γ", "gamma"},    {"δ", "delta"}, {"ε", "epsilon"},
    {"ζ", "zeta"},      {"η", "eta"},    {"θ", "theta"},    {"ι", "iota"},  {"κ", "kappa"},
    {"λ", "lambda"},    {"μ", "mu"},     {"ν", "nu"},       {"ξ", "xi"},    {"π", "pi"},
    {"ρ", "rho"},       {"σ", "sigma"},  {"ς", "varsigma"}, {"τ", "tau"},   {"υ", "upsilon"},
    {"φ", "phi"},       {"χ", "chi"},    {"ψ", "psi"},      {"ω", "omega"}, {"Δ", "Delta"},
    {"Θ", "Theta"},     {"Λ", "Lambda"}, {"Σ", "Sigma"},    {"Φ", "Phi"},   {"Ω", "Omega"}};
constexpr std::array<Pair, 6> kNamedSets = {Pair{"ℕ", "N"}, {"ℤ", "Z"}, {"ℚ", "Q"},
                                            {"ℝ", "R"},     {"ℂ", "C"}, {"ℙ", "P"}};

std::string lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return result;
}

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/// The longest of `names` that `text` begins with; "" if none.
template <typename Names>
std::string_view longest_prefix(const Names& names, std::string_view text) {
  std::string_view best;
  for (const std::string_view name : names) {
    if (name.size() > best.size() && text.starts_with(name)) best = name;
  }
  return best;
}

template <typename Pairs>
Pair longest_pair(const Pairs& pairs, std::string_view text) {
  Pair best;
  for (const Pair& pair : pairs) {
    if (pair.first.size() > best.first.size() && text.starts_with(pair.first)) best = pair;
  }
  return best;
}

class Lexer {
 public:
  explicit Lexer(std::string_view text) : text_(text) {}

  std::optional<std::vector<Token>> run() {
    while (at_ < text_.size()) {
      if (is_space(text_[at_])) {
        ++at_;
      } else if (!next()) {
        return std::nullopt;
      }
    }
    push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return text_.substr(at_); }
  char peek(size_t ahead) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

  bool push(TokenKind kind, std::string_view text, size_t num_bytes = 0) {
    tokens_.push_back({kind, std::string(text)});
    at_ += num_bytes;
    return true;
  }

  bool next() {
    const char c = text_[at_];
    if (c == '\\') return command();
    if (is_ascii_digit(c) || (c == '.' && is_ascii_digit(peek(1)))) return number();
    if (is_ascii_letter(c)) return letter();
    if (static_cast<unsigned char>(c) >= 0x80) return beyond_ascii();
    return sign();
  }

  bool sign() {
    for (const std::string_view transpose : {"^{T}", "^T"}) {
      if (rest().starts_with(transpose)) {
        return push(TokenKind::kOperator, "transpose", transpose.size());
      }
    }
    static constexpr std::array<Pair, 17> kAscii = {
        Pair{"!==", "!="}, {"!=", "!="}, {"==", "="}, {"<=", "<="}, {">=", ">="}, {"~=", "~="},
        {"+", "+"},        {"-", "-"},   {"*", "*"},  {"/", "/"},   {":", "/"},   {"^", "^"},
        {"_", "_"},        {"!", "!"},   {"=", "="},  {"<", "<"},   {">", ">"}};
    const Pair found = longest_pair(kAscii, rest());
    if (!found.first.empty()) return push(TokenKind::kOperator, found.second, found.first.size());
    switch (text_[at_]) {
      case '(':
      case '[':
      case '{':
        return push(TokenKind::kOpen, text_.substr(at_, 1), 1);
      case ')':
      case ']':
      case '}':
        return push(TokenKind::kClose, text_.substr(at_, 1), 1);
      case '|':
        return push(TokenKind::kBar, "|", 1);
      case ',':
        return push(TokenKind::kComma, ",", 1);
      case ';':
        return push(TokenKind::kSemicolon, ";", 1);
      case '&':
        return push(TokenKind::kAmpersand, "&", 1);
      case '\'':
        return push(TokenKind::kOperator, "transpose", 1);
      default:
        return false;
    }
  }

  bool number() {
    size_t end = at_;
    while (end < text_.size() && is_ascii_digit(text_[end])) ++end;
    if (end + 1 < text_.size() && text_[end] == '.' && is_ascii_digit(text_[end + 1])) {
      ++end;
      while (end < text_.size() && is_ascii_digit(text_[end])) ++end;
    }
    if (end - at_ > kMaxDigits) return false;
    const std::string_view digits = text_.substr(at_, end - at_);
    const std::string_view behind = text_.substr(end);
    const size_t space = !behind.empty() && is_space(behind[0]) ? 1 : 0;
    for (const std::string_view percent : {"\\%", "%"}) {
      if (behind.substr(space).starts_with(percent)) {
        return push(TokenKind::kPercent, digits, digits.size() + space + percent.size());
      }
    }
    return push_exponent(digits, behind);
  }

  bool push_exponent(std::string_view digits, std::string_view behind) {
    if (behind.starts_with('E')) {
      size_t end = 1;
      if (end < behind.size() && (behind[end] == '+' || behind[end] == '-')) ++end;
      const size_t first = end;
      while (end < behind.size() && is_ascii_digit(behind[end])) ++end;
      if (end > first) {
        const std::string text = std::string(digits) + std::string(behind.substr(0, end));
        return push(TokenKind::kNumber, text, text.size());
      }
    }
    return push(TokenKind::kNumber, digits, digits.size());
  }

  bool letter() {
    const char c = text_[at_];
    if (c == 'd') {
      size_t end = at_ + 1;
      while (end < text_.size() && is_space(text_[end])) ++end;
      if (end < text_.size() && is_ascii_letter(text_[end])) {
        const std::string name = {'d', text_[end]};
        return push(TokenKind::kSymbol, lower(name), end + 1 - at_);
      }
    }
    if (c == 'e') return push(TokenKind::kEuler, "", 1);
    if (c == 'I') return push(TokenKind::kCommand, "I", 1);
    return push(TokenKind::kSymbol, lower(text_.substr(at_, 1)), 1);
  }

  bool beyond_ascii() {
    const Pair found = longest_pair(kSigns, rest());
    if (!found.first.empty()) return push(TokenKind::kOperator, found.second, found.first.size());
    const Pair greek = longest_pair(kGreekSigns, rest());
    if (!greek.first.empty()) return greek_letter(greek.second, greek.first.size());
    const Pair set = longest_pair(kNamedSets, rest());
    if (!set.first.empty()) {
      return push(TokenKind::kCommand, "set" + std::string(set.second), set.first.size());
    }
    constexpr std::string_view kEmpty = "∅";
    if (rest().starts_with(kEmpty)) return push(TokenKind::kCommand, "emptyset", kEmpty.size());
    return false;
  }

  bool greek_letter(std::string_view name, size_t num_bytes) {
    if (name == "pi") return push(TokenKind::kCommand, "pi", num_bytes);
    if (name == "gamma" || name == "Gamma") return push(TokenKind::kCommand, "gamma", num_bytes);
    return push(TokenKind::kSymbol, lower(name), num_bytes);
  }

  bool command() {
    const char c = peek(1);
    if (c == '\\') return push(TokenKind::kRow, "\\\\", 2);
    if (c == '{' || c == '(') return push(TokenKind::kOpen, c == '{' ? "\\{" : "(", 2);
    if (c == '}' || c == ')') return push(TokenKind::kClose, c == '}' ? "\\}" : ")", 2);
    if (c == ',' || c == ':' || c == ';' || c == '!' || c == '$') {
      at_ += 2;
      return true;
    }
    if (!is_ascii_letter(c)) return false;
    return word(rest().substr(1));
  }

  bool word(std::string_view text) {
    if (text.starts_with("begin{") || text.starts_with("end{")) return environment(text);
    if (text.starts_with("not\\equiv")) return push(TokenKind::kOperator, "!=", 10);
    const std::string_view greek = longest_prefix(kGreek, text);
    const std::string_view sign = longest_prefix(kSignCommands, text);
    const std::string_view accent = longest_prefix(kAccents, text);
    const std::string_view plain = longest_prefix(kPlainCommands, text);
    const std::string_view space = longest_prefix(kSpaces, text);
    const Pair op = longest_pair(kOperatorCommands, text);
    const Pair bracket = longest_pair(kBracketCommands, text);
    const size_t longest = std::max({greek.size(), sign.size(), accent.size(), plain.size(),
                                     space.size(), op.first.size(), bracket.first.size()});
    if (longest == 0) return false;
    if (accent.size() == longest && push_accent(accent, text)) return true;
    if (op.first.size() == longest) return push(TokenKind::kOperator, op.second, longest + 1);
    if (bracket.first.size() == longest) {
      const bool opens = bracket.first.starts_with('l');
      return push(opens ? TokenKind::kOpen : TokenKind::kClose, bracket.second, longest + 1);
    }
    if (plain.size() == longest) return push(TokenKind::kCommand, plain, longest + 1);
    if (greek.size() == longest) return greek_letter(greek, longest + 1);
    if (sign.size() == longest) return push(TokenKind::kSymbol, lower(sign), longest + 1);
    if (space.size() != longest) return false;
    at_ += longest + 1;
    return true;
  }

  /// \text{two words}: one symbol; accents stay in its name, but those of text do not.
  bool push_accent(std::string_view accent, std::string_view text) {
    size_t open = accent.size();
    if (open < text.size() && is_space(text[open])) ++open;
    if (open >= text.size() || text[open] != '{') return false;
    const size_t close = text.find('}', open);
    if (close == std::string_view::npos) return false;
    std::string inner(text.substr(open + 1, close - open - 1));
    std::erase(inner, ' ');
    const size_t num_bytes = close + 2;
    if (accent == "mathbb" && inner.size() == 1 &&
        std::string_view("NZQRCP").find(inner[0]) != std::string_view::npos) {
      return push(TokenKind::kCommand, "set" + inner, num_bytes);
    }
    std::string name(accent);
    if (accent.starts_with("text") || accent == "mbox") {
      std::erase_if(inner, [](char c) { return c == '(' || c == ')'; });
      return push(TokenKind::kSymbol, lower(inner), num_bytes);
    }
    if (accent == "overline") name = "bar";
    if (accent == "overrightarrow") name = "vec";
    if (accent == "widetilde") name = "tilde";
    if (accent.starts_with("math")) name = "math";
    return push(TokenKind::kSymbol, lower(name + "{" + inner + "}"), num_bytes);
  }

  bool environment(std::string_view text) {
    const bool begins = text.starts_with('b');
    const size_t open = begins ? 5 : 3;
    const size_t close = text.find('}', open);
    if (close == std::string_view::npos) return false;
    const std::string_view name = text.substr(open + 1, close - open - 1);
    size_t end = close + 1;
    if (name == "array" && begins && text.substr(end).starts_with('{')) {
      end = text.find('}', end);
      if (end == std::string_view::npos) return false;
      ++end;
    }
    const bool is_determinant = name == "vmatrix";
    if (!is_determinant && name != "matrix" && name != "pmatrix" && name != "bmatrix" &&
        name != "array") {
      return false;
    }
    std::string kind = begins ? "begin" : "end";
    return push(TokenKind::kEnvironment, kind + (is_determinant ? "det" : ""), end + 1);
  }

  const std::string_view text_;
  size_t at_ = 0;
  std::vector<Token> tokens_;
};

}  // namespace

std::optional<std::vector<Token>> tokenize_latex(std::string_view latex) {
  return Lexer(latex).run();
}

}  // namespace nibble::math
