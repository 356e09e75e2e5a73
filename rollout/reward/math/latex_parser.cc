#include "rollout/reward/math/latex_parser.h"

#include <string>
#include <utility>

#include "rollout/reward/math/latex_grammar.h"
#include "rollout/reward/math/math_limits.h"
#include "rollout/reward/text/text.h"

namespace nibble::math {
namespace {

/// 12,345 or -1,234.5: groups of three behind commas, nothing else.
bool is_grouped_number(std::string_view text) {
  size_t at = text.starts_with('-') ? 1 : 0;
  size_t digits = 0;
  size_t groups = 0;
  for (; at < text.size() && (is_ascii_digit(text[at]) || text[at] == ','); ++at) {
    if (text[at] != ',') {
      ++digits;
      continue;
    }
    if (groups == 0 ? digits == 0 || digits > 3 : digits != 3) return false;
    ++groups;
    digits = 0;
  }
  if (groups == 0 || digits != 3) return false;
  if (at == text.size()) return true;
  if (text[at] != '.' || at + 1 == text.size()) return false;
  return text.find_first_not_of("0123456789", at + 1) == std::string_view::npos;
}

std::string without_groups(std::string_view text) {
  std::string plain(text);
  if (text.starts_with('0')) {  // 0,125 is written with a decimal comma
    plain[plain.find(',')] = '.';
  }
  std::erase(plain, ',');
  return plain;
}

}  // namespace

std::optional<Expression> parse_latex(std::string_view latex) {
  if (latex.size() > kMaxLatexBytes) return std::nullopt;
  const std::string_view trimmed = trim(latex);
  std::string plain;
  if (is_grouped_number(trimmed)) plain = without_groups(trimmed);
  auto tokens = tokenize_latex(plain.empty() ? trimmed : plain);
  if (!tokens || tokens->size() < 2) return std::nullopt;
  try {
    return LatexGrammar(std::move(*tokens)).whole();
  } catch (const LatexGrammar::NotRead&) {
    return std::nullopt;
  }
}

}  // namespace nibble::math
