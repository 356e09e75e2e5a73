#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

namespace nibble::math {

/// LaTeX in a text: between $..$, $$..$$, \(..\), \[..\] or " [..] ", or a fraction of two numbers
/// on its own.
struct LatexPiece {
  std::string_view content;
  bool is_percent = false;  ///< "%" or "percent" follows
};

/// One piece, or up to six joined by commas, "and" or "or".
struct LatexSpan {
  size_t begin = 0;
  size_t end = 0;  ///< percent sign included
  std::vector<LatexPiece> pieces;
};

/// Finds spans in one text, which must outlive it. A piece is at most kMaxLatexBytes long. Calls
/// with rising places take time linear in the text, however many delimiters never close.
class LatexScanner {
 public:
  explicit LatexScanner(std::string_view text) : text_(text) {}
  /// The span that begins right at `at`, if one does.
  std::optional<LatexSpan> span_at(size_t at);

 private:
  struct Piece {
    LatexPiece piece;
    size_t end = 0;
  };
  struct Range {
    size_t begin = 0;
    size_t end = 0;
  };
  static constexpr size_t kNumDelimiters = 4;

  std::optional<Piece> piece_at(size_t at);
  std::optional<Piece> delimited_at(size_t at);
  std::optional<Piece> bracketed_at(size_t at) const;
  std::optional<Piece> fraction_at(size_t at) const;
  size_t find_close(size_t at, size_t delimiters);

  const std::string_view text_;
  std::array<Range, kNumDelimiters> unclosed_;  // where the closing delimiter is known not to stand
};

}  // namespace nibble::math
