#pragma once

#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>

#include "rollout/reward/text/text.h"

namespace nibble::math {

inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

inline size_t skip_space(std::string_view text, size_t at) {
  while (at < text.size() && is_space(text[at])) ++at;
  return at;
}

inline bool is_at(std::string_view text, size_t at, std::string_view word) {
  return at <= text.size() && text.substr(at).starts_with(word);
}

inline bool is_word_char(char c) { return is_ascii_letter(c) || is_ascii_digit(c) || c == '_'; }

/// Whether `word` stands at `at` with no word character on either side.
inline bool is_word_at(std::string_view text, size_t at, std::string_view word) {
  if (!is_at(text, at, word) || (at > 0 && is_word_char(text[at - 1]))) return false;
  const size_t end = at + word.size();
  return end == text.size() || !is_word_char(text[end]);
}

/// Every `from`, left to right, as `to`.
inline void replace_all(std::string& text, std::string_view from, std::string_view to) {
  std::string result;
  size_t begin = 0;
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, begin)) {
    result.append(text, begin, at - begin).append(to);
    begin = at + from.size();
  }
  if (begin == 0) return;
  text = result.append(text, begin);
}

}  // namespace nibble::math
