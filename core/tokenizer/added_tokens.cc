#include "core/tokenizer/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>

#include "core/tokenizer/utf8.h"

namespace nibble {
namespace {

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

// \w of Rust's regex crate, but for the Other_Alphabetic symbols (circled letters).
bool is_word(char32_t c) {
  if (c == 0x200C || c == 0x200D) return true;  // Join_Control
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return (c >= 0x24B6 && c <= 0x24E9);
  }
}

size_t character_before(std::string_view text, size_t pos) {
  do {
    --pos;
  } while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80);
  return pos;
}

bool touches_word(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && is_word(utf8_step(text, character_before(text, begin)).code_point)) return true;
  return end < text.size() && is_word(utf8_step(text, end).code_point);
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), nodes_(1) {
  for (size_t index = 0; index < tokens_.size(); ++index) {
    int at = 0;
    for (const char c : tokens_[index].content) {
      const auto byte = static_cast<unsigned char>(c);
      const auto& children = nodes_[at].children;
      const auto child = std::find_if(children.begin(), children.end(),
                                      [&](const auto& edge) { return edge.first == byte; });
      if (child != children.end()) {
        at = child->second;
        continue;
      }
      const int fresh = static_cast<int>(nodes_.size());
      nodes_[at].children.emplace_back(byte, fresh);
      nodes_.emplace_back();
      at = fresh;
    }
    nodes_[at].token = static_cast<int>(index);
  }
  for (const auto& [byte, child] : nodes_[0].children) starts_[byte] = true;
}

std::pair<int, size_t> AddedTokenMatcher::longest_match(std::string_view text, size_t pos) const {
  std::pair<int, size_t> best = {-1, pos};
  int at = 0;
  while (pos < text.size()) {
    const auto byte = static_cast<unsigned char>(text[pos]);
    const auto& children = nodes_[at].children;
    const auto child = std::find_if(children.begin(), children.end(),
                                    [&](const auto& edge) { return edge.first == byte; });
    if (child == children.end()) break;
    at = child->second;
    ++pos;
    if (nodes_[at].token >= 0) best = {nodes_[at].token, pos};
  }
  return best;
}

void AddedTokenMatcher::split(std::string_view text, std::vector<TextSpan>& spans) const {
  size_t done = 0;  // everything before is in `spans`
  size_t pos = 0;
  while (pos < text.size()) {
    if (!starts_[static_cast<unsigned char>(text[pos])]) {
      ++pos;
      continue;
    }
    const auto [index, end] = longest_match(text, pos);
    if (index < 0) {
      ++pos;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = pos;
    size_t stop = end;
    pos = end;  // as in `tokenizers`, also after a match that is then discarded
    if (token.single_word && touches_word(text, begin, stop)) continue;
    while (token.lstrip && begin > done) {
      const size_t before = character_before(text, begin);
      if (before < done || !is_space(utf8_step(text, before).code_point)) break;
      begin = before;
    }
    while (token.rstrip && stop < text.size()) {
      const Utf8Step step = utf8_step(text, stop);
      if (!is_space(step.code_point)) break;
      stop += step.bytes;
    }
    if (begin > done) spans.push_back({text.substr(done, begin - done), -1});
    spans.push_back({text.substr(begin, stop - begin), token.id});
    done = stop;
  }
  if (done < text.size()) spans.push_back({text.substr(done), -1});
}

}  // namespace nibble
