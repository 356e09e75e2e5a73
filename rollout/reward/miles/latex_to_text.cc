#include "rollout/reward/miles/latex_to_text.h"

#include <array>
#include <utility>

#include "rollout/reward/math/text_scan.h"
#include "rollout/reward/text/text.h"

namespace nibble::miles {
namespace {

using math::is_at;
using math::skip_space;
using Pair = std::pair<std::string_view, std::string_view>;

constexpr int kMaxDepth = 60;

constexpr std::array<Pair, 55> kSigns = {
    Pair{"pi", "pi"},  {"infty", "inf"}, {"cup", "U"},        {"cdot", "*"},
    {"times", "*"},    {"div", "÷"},     {"pm", "±"},         {"mp", "∓"},
    {"le", "≤"},       {"leq", "≤"},     {"ge", "≥"},         {"geq", "≥"},
    {"ne", "≠"},       {"neq", "≠"},     {"in", "∈"},         {"cap", "∩"},
    {"circ", "∘"},     {"approx", "≈"},  {"equiv", "≡"},      {"emptyset", "∅"},
    {"alpha", "α"},    {"beta", "β"},    {"gamma", "γ"},      {"delta", "δ"},
    {"epsilon", "ϵ"},  {"theta", "θ"},   {"lambda", "λ"},     {"mu", "μ"},
    {"phi", "ϕ"},      {"rho", "ρ"},     {"sigma", "σ"},      {"tau", "τ"},
    {"omega", "ω"},    {"Delta", "Δ"},   {"Omega", "Ω"},      {"angle", "∠"},
    {"triangle", "△"}, {"mid", "∣"},     {"setminus", "∖"},   {"to", "→"},
    {"sin", "sin"},    {"cos", "cos"},   {"tan", "tan"},      {"log", "log"},
    {"ln", "ln"},      {"exp", "exp"},   {"quad", "  "},      {"ldots", "…"},
    {"dots", "…"},     {"cdots", "⋯"},   {"varnothing", "∅"}, {"sum", "∑"},
    {"prod", "∏"},     {"int", "∫"},     {"arctan", "arctan"}};
constexpr std::array kFonts = {"text",   "textbf", "textit", "textrm", "mathrm",
                               "mathit", "mathsf", "mbox",   "emph",   "operatorname"};
constexpr std::array kBoldFonts = {"mathbf", "mathbb", "mathcal", "mathfrak", "boldsymbol"};

class Converter {
 public:
  explicit Converter(std::string_view text) : text_(text) {}

  std::string run() {
    std::string out;
    while (at_ < text_.size()) out += next();
    return out;
  }

 private:
  std::string next() {
    if (text_[at_] == '\\') return command();
    if (text_[at_] == '{') return argument();
    if (text_[at_] == '&') {
      ++at_;
      return " ";
    }
    return std::string(1, text_[at_++]);
  }

  /// A group without its braces, a command with what it takes, or one character.
  std::string argument() {
    at_ = skip_space(text_, at_);
    if (at_ >= text_.size()) return "";
    if (text_[at_] == '\\') return command();
    if (text_[at_] != '{' || depth_ == kMaxDepth) return std::string(1, text_[at_++]);
    ++at_;
    ++depth_;
    std::string out;
    while (at_ < text_.size() && text_[at_] != '}') out += next();
    if (at_ < text_.size()) ++at_;
    --depth_;
    return out;
  }

  std::string command() {
    ++at_;
    if (at_ >= text_.size()) return "";
    if (!is_ascii_letter(text_[at_])) return escaped();
    const size_t begin = at_;
    while (at_ < text_.size() && is_ascii_letter(text_[at_])) ++at_;
    const std::string_view name = text_.substr(begin, at_ - begin);
    if (depth_ == kMaxDepth) return "";
    ++depth_;
    std::string out = named(name);
    --depth_;
    return out;
  }

  std::string escaped() {
    const char c = text_[at_++];
    if (c == '\\') return environments_ > 0 ? ";" : "\n";  // rows of a matrix, or lines
    if (c == ',' || c == ';' || c == ':' || c == ' ') return " ";
    // Of the others only these stand for themselves; accents have no place in an answer.
    constexpr std::string_view kEscaped = "#$%&_{}";
    return kEscaped.find(c) == std::string_view::npos ? "" : std::string(1, c);
  }

  std::string named(std::string_view name) {
    if (name == "frac") {
      const std::string top = argument();
      return " " + top + "/" + argument();
    }
    if (name == "sqrt") {
      at_ = skip_space(text_, at_);
      if (is_at(text_, at_, "[")) {
        const size_t close = text_.find(']', at_);
        if (close != std::string_view::npos) at_ = close + 1;
      }
      return "sqrt(" + argument() + ")";
    }
    if (name == "begin" || name == "end") {
      (void)argument();
      environments_ += name == "begin" ? 1 : -1;
      return name == "begin" ? "[" : "]";
    }
    for (const std::string_view font : kFonts) {
      if (name == font) return argument();
    }
    for (const std::string_view font : kBoldFonts) {
      // A letter of another alphabet: never equal to the plain one.
      if (name == font) return "\xf0\x9d" + argument();
    }
    for (const auto& [command, sign] : kSigns) {
      if (name == command) return std::string(sign);
    }
    return "";
  }

  const std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
  int environments_ = 0;  // open ones
};

}  // namespace

std::string latex_to_text(std::string_view latex) {
  std::string text(latex);
  math::replace_all(text, "\\tfrac", "\\frac");
  math::replace_all(text, "\\dfrac", "\\frac");
  text = Converter(text).run();
  return std::string(trim(text));
}

}  // namespace nibble::miles
