#include "rollout/reward/math/latex_normalize.h"

#include <array>
#include <utility>

#include "rollout/reward/math/latex_repairs.h"
#include "rollout/reward/math/math_limits.h"
#include "rollout/reward/math/text_scan.h"
#include "rollout/reward/math/unit_words.h"

namespace nibble::math {
namespace {

/// Drops "\left" and "\right" where a delimiter follows, which stays.
std::string without_sizes(std::string_view text) {
  constexpr std::array<std::string_view, 16> kDelimiters = {
      "\\{", "\\}", "{",        "}",        "\\|",      "|",        "[",       "]",
      "(",   ")",   "\\lbrace", "\\rbrace", "\\lfloor", "\\rfloor", "\\lceil", "\\rceil"};
  std::string result;
  for (size_t at = 0; at < text.size();) {
    size_t end = 0;
    for (const std::string_view command : {"\\left", "\\mleft", "\\right", "\\mright"}) {
      if (is_at(text, at, command)) end = at + command.size();
    }
    bool is_sized = false;
    for (const std::string_view delimiter : kDelimiters) {
      is_sized = is_sized || (end > 0 && is_at(text, end, delimiter));
    }
    for (const std::string_view bar : {"\\vert", "\\lvert", "\\rvert", "\\langle", "\\rangle"}) {
      is_sized = is_sized || (end > 0 && is_at(text, end, bar));
    }
    if (is_sized) {
      at = end;
    } else {
      result += text[at++];
    }
  }
  return result;
}

/// Behind "\text{}" with nothing but space in it, or `at`.
size_t skip_empty_text(std::string_view text, size_t at) {
  if (!is_at(text, at, "\\text")) return at;
  const size_t open = skip_space(text, at + 5);
  if (!is_at(text, open, "{")) return at;
  const size_t close = skip_space(text, open + 1);
  return is_at(text, close, "}") ? close + 1 : at;
}

std::string without_decoration(std::string_view text) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    if (is_at(text, at, "\\mathrm{th}")) {
      end = at + 11;
    } else if (is_at(text, at, "\\!")) {
      end = skip_space(text, at + 2);
    } else if (is_at(text, at, "\\$")) {
      end = at + 2;
    } else if (text[at] == '$') {
      end = at + 1;
    } else if ((text[at] == '"' || text[at] == '\'') && (at == 0 || text[at - 1] != '\\')) {
      end = at + 1;
    } else if (is_at(text, at, "\\displaystyle")) {
      end = at + 13;
    } else {
      end = skip_empty_text(text, at);
    }
    if (end > at) {
      at = end;
    } else {
      result += text[at++];
    }
  }
  return result;
}

/// A piece of text and what it becomes; end 0: nothing stands there.
struct Rewrite {
  size_t end = 0;
  std::string_view text;
};

/// \mathrm and the like as \text, \dfrac as \frac.
Rewrite rewrite_command(std::string_view text, size_t at) {
  for (const std::string_view style :
       {"\\mathrm", "\\mathit", "\\mathbf", "\\textnormal", "\\textbf", "\\textit", "\\textrm"}) {
    if (is_at(text, at, style)) return {at + style.size(), "\\text"};
  }
  for (const std::string_view frac : {"\\dfrac", "\\tfrac", "\\cfrac"}) {
    if (is_at(text, at, frac)) return {at + frac.size(), "\\frac"};
  }
  return {};
}

/// "{,}" as a comma; "and", "or" and "\text{ and }", with the comma before them, too.
Rewrite rewrite_separator(std::string_view text, size_t at) {
  size_t next = skip_space(text, at);
  if (is_at(text, next, "{")) {
    const size_t comma = skip_space(text, next + 1);
    if (is_at(text, comma, ",")) {
      const size_t close = skip_space(text, comma + 1);
      if (is_at(text, close, "}")) return {close + 1, ","};
    }
  }
  const size_t behind_comma = text[at] == ',' ? at + 1 : at;
  next = skip_space(text, behind_comma);
  const bool follows_letter = at > 0 && is_ascii_letter(text[at - 1]);
  for (const std::string_view word : {"and", "or"}) {
    const size_t end = next + word.size();
    if (is_at(text, next, word) && !follows_letter &&
        (end == text.size() || !is_ascii_letter(text[end]))) {
      return {end, ","};
    }
  }
  if (!is_at(text, next, "\\text{")) return {};
  const size_t inner = skip_space(text, next + 6);
  for (const std::string_view word : {"and", "or"}) {
    if (!is_at(text, inner, word)) continue;
    const size_t close = skip_space(text, inner + word.size());
    if (is_at(text, close, "}")) return {close + 1, ","};
  }
  return {};
}

Rewrite rewrite_percent(std::string_view text, size_t at) {
  constexpr std::string_view kText = "\\text{";
  const size_t word = skip_space(text, at);
  for (const std::string_view name : {"percentage", "percent", "pct"}) {
    if (is_word_at(text, word, name)) return {word + name.size(), "\\%"};
    const size_t close = at + kText.size() + name.size();
    if (is_at(text, at, kText) && is_at(text, at + kText.size(), name) && is_at(text, close, "}")) {
      return {close + 1, "%"};
    }
  }
  return {};
}

Rewrite rewrite_rest(std::string_view text, size_t at) {
  const bool is_escaped = at > 0 && text[at - 1] == '\\';
  if (is_space(text[at]) && is_at(text, at + 1, ".")) return {at + 2, " 0."};
  if (is_at(text, at, "{.")) return {at + 2, "{0."};
  if (is_at(text, at, "~=")) return {at + 2, "\\approx"};
  if (text[at] == '\\' && !is_escaped && at + 1 < text.size() && is_space(text[at + 1])) {
    return {at + 2, " "};
  }
  if (is_at(text, at, "infinity")) return {at + 8, "\\infty"};
  if (is_at(text, at, ",\\ldots")) return {at + 7, " "};
  if (is_at(text, at, "\\ldots")) return {at + 6, " "};
  if (is_at(text, at, "inf") && !is_escaped && !is_at(text, at + 3, "inity")) {
    return {at + 3, "\\infty"};
  }
  if (is_at(text, at, " sqrt")) return {at + 5, "\\sqrt"};
  return {};
}

std::string with_uniform_spelling(std::string_view text) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    Rewrite found;
    for (const auto& rewrite :
         {rewrite_command, rewrite_separator, rewrite_percent, rewrite_rest}) {
      if (found.end == 0) found = rewrite(text, at);
    }
    if (found.end == 0) {
      result += text[at++];
    } else {
      result += found.text;
      at = found.end;
    }
  }
  return result;
}

/// "\\frac" as "\frac": a doubled backslash before a command, where none separates rows.
std::string with_single_backslashes(std::string_view text) {
  std::string result;
  for (size_t at = 0; at < text.size(); ++at) {
    const bool is_double =
        is_at(text, at, "\\\\") && at + 2 < text.size() && is_ascii_letter(text[at + 2]);
    if (is_double) ++at;
    result += text[at];
  }
  return result;
}

}  // namespace

std::string normalize_latex(std::string_view latex, BoxChoice boxes) {
  std::string text = join_boxes(latex, boxes);
  if (text.size() > kMaxLatexBytes) return text;
  replace_all(text, "\\mathrm{T}", "T");
  replace_all(text, "\\mathrm{d}", "d");
  replace_all(text, "{\\rm d}", "d");
  text = with_uniform_spelling(without_decoration(without_sizes(text)));
  for (char& c : text) {
    if (c == '\n' || c == '\t') c = ' ';
  }
  if (text.find("matrix") == std::string::npos) text = with_single_backslashes(text);
  text = without_units(std::move(text));
  if (text.starts_with('.')) text.insert(text.begin(), '0');
  if (text == "0.5") text = "\\frac{1}{2}";
  return std::string(trim(repair_short_forms(std::move(text))));
}

}  // namespace nibble::math
