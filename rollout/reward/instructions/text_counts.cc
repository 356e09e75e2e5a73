#include "rollout/reward/instructions/text_counts.h"

#include <algorithm>
#include <cctype>

#include "rollout/reward/text/text.h"

namespace nibble {
namespace {

constexpr size_t kNone = std::string_view::npos;

bool is_word_char(char c) {
  return is_ascii_letter(c) || is_ascii_digit(c) || c == '_' ||
         (static_cast<unsigned char>(c) & 0x80) != 0;
}

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

}  // namespace

std::string lower_text(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return result;
}

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    while (end < text.size() && is_word_char(text[end])) ++end;
    if (end > at) words.push_back(text.substr(at, end - at));
    at = std::max(end, at + 1);
  }
  return words;
}

int64_t count_sentences(std::string_view text) {
  int64_t count = 0;
  bool has_words = false;
  for (size_t at = 0; at < text.size(); ++at) {
    if (is_word_char(text[at])) has_words = true;
    const bool is_sign = text[at] == '.' || text[at] == '!' || text[at] == '?';
    if (!is_sign || !has_words) continue;
    if (at + 1 < text.size() && !is_space(text[at + 1])) continue;
    ++count;
    has_words = false;
  }
  return has_words ? count + 1 : count;
}

std::vector<std::string_view> paragraphs_of(std::string_view text) {
  constexpr std::string_view kSeparator = "***";
  std::vector<std::string_view> paragraphs;
  size_t begin = 0;
  while (true) {
    const size_t end = text.find(kSeparator, begin);
    const std::string_view paragraph = trim(text.substr(begin, end - begin));
    if (!paragraph.empty()) paragraphs.push_back(paragraph);
    if (end == kNone) return paragraphs;
    begin = end + kSeparator.size();
  }
}

int64_t count_phrase(std::string_view text, std::string_view phrase) {
  int64_t count = 0;
  for (size_t at = text.find(phrase); at != kNone; at = text.find(phrase, at + 1)) {
    const size_t end = at + phrase.size();
    const bool begins = at == 0 || !is_word_char(text[at - 1]) || !is_word_char(phrase.front());
    const bool ends =
        end == text.size() || !is_word_char(text[end]) || !is_word_char(phrase.back());
    count += begins && ends ? 1 : 0;
  }
  return count;
}

int64_t count_bullets(std::string_view text) {
  int64_t count = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = trim(text.substr(begin, end - begin));
    count += line.starts_with("* ") || line.starts_with("- ") ? 1 : 0;
    begin = end + 1;
  }
  return count;
}

int64_t count_enclosed(std::string_view text, std::string_view open, std::string_view close) {
  int64_t count = 0;
  for (size_t line_begin = 0; line_begin < text.size();) {
    const size_t line_end = std::min(text.find('\n', line_begin), text.size());
    const std::string_view line = text.substr(line_begin, line_end - line_begin);
    line_begin = line_end + 1;
    for (size_t at = line.find(open); at != kNone;) {
      const size_t begin = at + open.size();
      const size_t end = line.find(close, begin);
      if (end == kNone) break;  // nor does a later one close on this line
      const bool is_empty = trim(line.substr(begin, end - begin)).empty();
      count += is_empty ? 0 : 1;
      at = line.find(open, is_empty ? begin : end + close.size());
    }
  }
  return count;
}

}  // namespace nibble
