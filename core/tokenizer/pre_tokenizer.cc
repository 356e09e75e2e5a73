#include "core/tokenizer/pre_tokenizer.h"

#include <utf8proc.h>

#include "core/tokenizer/utf8.h"

namespace nibble {
namespace {

bool is_number(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO;
}

void split_digits(std::string_view text, PreTokenizerStep::Digits mode,
                  std::vector<std::string_view>& out) {
  size_t done = 0;
  const auto cut_at = [&](size_t pos) {
    if (pos > done) out.push_back(text.substr(done, pos - done));
    done = pos;
  };
  bool last_was_number = false;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = utf8_step(text, pos);
    const bool number = is_number(step.code_point);
    const bool apart = number && mode == PreTokenizerStep::Digits::kIndividual;
    if (apart || number != last_was_number) cut_at(pos);
    last_was_number = number;
    pos += step.bytes;
  }
  cut_at(text.size());
}

}  // namespace

std::string_view gpt2_pattern() {
  return R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
}

void PreTokenizer::split(std::string_view text, Pieces& pieces) const {
  pieces.views.clear();
  pieces.owned.clear();
  if (text.empty()) return;
  pieces.views.push_back(text);
  std::vector<std::string_view> next;
  for (const PreTokenizerStep& step : steps_) {
    if (step.add_prefix_space) {
      for (std::string_view& piece : pieces.views) {
        if (piece.front() == ' ') continue;
        std::string& spaced = pieces.owned.emplace_back(1, ' ');
        spaced += piece;
        piece = spaced;
      }
    }
    if (step.digits != PreTokenizerStep::Digits::kNo) {
      next.clear();
      for (const std::string_view piece : pieces.views) split_digits(piece, step.digits, next);
      pieces.views.swap(next);
    }
    if (step.pattern) {
      next.clear();
      for (const std::string_view piece : pieces.views) step.pattern->split(piece, next);
      pieces.views.swap(next);
    }
  }
}

}  // namespace nibble
