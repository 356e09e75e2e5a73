#include "rollout/reward/math/latex_spans.h"

#include <algorithm>
#include <array>

#include "rollout/reward/math/math_limits.h"
#include "rollout/reward/math/text_scan.h"

namespace nibble::math {
namespace {

constexpr size_t kMaxPieces = 6;

struct Delimiters {
  std::string_view open;
  std::string_view close;
  bool crosses_lines;
};

constexpr std::array<Delimiters, 4> kDelimiters = {
    {{"$$", "$$", true}, {"\\[", "\\]", true}, {"$", "$", false}, {"\\(", "\\)", false}}};

bool is_escaped(std::string_view text, size_t at) { return at > 0 && text[at - 1] == '\\'; }

/// "{-1.5}" as the end behind it; npos if no number in braces begins at `at`.
size_t end_of_braced_number(std::string_view text, size_t at) {
  if (!is_at(text, at, "{")) return std::string_view::npos;
  ++at;
  if (is_at(text, at, "-")) ++at;
  const size_t digits = at;
  while (at < text.size() && is_ascii_digit(text[at])) ++at;
  if (at == digits) return std::string_view::npos;
  if (at + 1 < text.size() && (text[at] == '.' || text[at] == ',') &&
      is_ascii_digit(text[at + 1])) {
    ++at;
    while (at < text.size() && is_ascii_digit(text[at])) ++at;
  }
  return is_at(text, at, "}") ? at + 1 : std::string_view::npos;
}

/// Behind ", ", " and ", ", or " and the like; npos if no separator stands at `at`.
size_t skip_separator(std::string_view text, size_t at) {
  at = skip_space(text, at);
  for (const std::string_view word : {",and", ",or", "and", "or", ","}) {
    if (is_at(text, at, word)) return skip_space(text, at + word.size());
  }
  return std::string_view::npos;
}

}  // namespace

/// Where delimiters close behind `at`, with something between; npos if they do not.
size_t LatexScanner::find_close(size_t at, size_t delimiters) {
  const auto& [open, sign, crosses_lines] = kDelimiters[delimiters];
  Range& unclosed = unclosed_[delimiters];
  const size_t limit = std::min(text_.size(), at + kMaxLatexBytes);
  const bool is_known = at >= unclosed.begin && at < unclosed.end;
  if (!is_known) unclosed = {at, at};
  size_t close = is_known ? unclosed.end : at;
  for (; close < limit; ++close) {
    if (!crosses_lines && text_[close] == '\n') {
      unclosed.end = close;
      return std::string_view::npos;
    }
    if (close > at && is_at(text_, close, sign) && !is_escaped(text_, close)) return close;
  }
  unclosed.end = std::max(unclosed.end, close);
  return std::string_view::npos;
}

std::optional<LatexScanner::Piece> LatexScanner::delimited_at(size_t at) {
  if (is_escaped(text_, at)) return std::nullopt;
  for (size_t i = 0; i < kDelimiters.size(); ++i) {
    const Delimiters& delimiters = kDelimiters[i];
    if (!is_at(text_, at, delimiters.open)) continue;
    // A dollar sign behind a digit is money.
    if (delimiters.open == "$" && at > 0 && is_ascii_digit(text_[at - 1])) continue;
    const size_t begin = at + delimiters.open.size();
    const size_t close = find_close(begin, i);
    if (close == std::string_view::npos) continue;
    return Piece{{text_.substr(begin, close - begin)}, close + delimiters.close.size()};
  }
  return std::nullopt;
}

/// " [..] ", white space on both sides.
std::optional<LatexScanner::Piece> LatexScanner::bracketed_at(size_t at) const {
  if (!is_space(text_[at]) || !is_at(text_, at + 1, "[")) return std::nullopt;
  const size_t close = text_.find_first_of("]\n[", at + 2);
  if (close == std::string_view::npos || text_[close] != ']' || close == at + 2 ||
      close + 1 == text_.size() || !is_space(text_[close + 1])) {
    return std::nullopt;
  }
  return Piece{{text_.substr(at + 2, close - at - 2)}, close + 2};
}

std::optional<LatexScanner::Piece> LatexScanner::fraction_at(size_t at) const {
  const size_t command = is_at(text_, at, "-") ? at + 1 : at;
  if (!is_at(text_, command, "\\frac")) return std::nullopt;
  const size_t middle = end_of_braced_number(text_, command + 5);
  if (middle == std::string_view::npos) return std::nullopt;
  const size_t end = end_of_braced_number(text_, middle);
  if (end == std::string_view::npos) return std::nullopt;
  return Piece{{text_.substr(at, end - at)}, end};
}

std::optional<LatexScanner::Piece> LatexScanner::piece_at(size_t at) {
  if (at >= text_.size()) return std::nullopt;
  auto piece = delimited_at(at);
  if (!piece) piece = bracketed_at(at);
  if (!piece) piece = fraction_at(at);
  if (!piece) return std::nullopt;
  const size_t next = skip_space(text_, piece->end);
  for (const std::string_view percent : {"\\%", "%", "Percent", "percent", "Pct", "pct"}) {
    if (!is_at(text_, next, percent)) continue;
    piece->piece.is_percent = true;
    piece->end = next + percent.size();
    return piece;
  }
  return piece;
}

std::optional<LatexSpan> LatexScanner::span_at(size_t at) {
  auto piece = piece_at(at);
  if (!piece) return std::nullopt;
  LatexSpan span{at, piece->end, {piece->piece}};
  while (span.pieces.size() < kMaxPieces) {
    const size_t next = skip_separator(text_, span.end);
    if (next == std::string_view::npos) break;
    piece = piece_at(next);
    if (!piece) break;
    span.pieces.push_back(piece->piece);
    span.end = piece->end;
  }
  return span;
}

}  // namespace nibble::math
