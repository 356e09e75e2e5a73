#include "rollout/reward/text/boxed.h"

#include <vector>

#include "rollout/reward/text/text.h"

namespace nibble {
namespace {

constexpr std::string_view kBoxed = "\\boxed";
constexpr std::string_view kFbox = "\\fbox";
constexpr size_t kNone = std::string_view::npos;

/// Behind the brace that closes the one at `open`; kNone if none does before `end`.
size_t end_of_braces(std::string_view text, size_t open, size_t end) {
  int depth = 0;
  for (size_t at = open; at < end; ++at) {
    if (text[at] == '{') ++depth;
    if (text[at] == '}' && --depth == 0) return at + 1;
  }
  return kNone;
}

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

bool has_word(std::string_view text, std::string_view word) {
  for (size_t at = text.find(word); at != kNone; at = text.find(word, at + 1)) {
    const size_t end = at + word.size();
    const bool begins = at == 0 || !is_ascii_letter(text[at - 1]);
    if (begins && (end == text.size() || !is_ascii_letter(text[end]))) return true;
  }
  return false;
}

/// Whether a box belongs to the answer of the one that follows it.
bool belongs(std::string_view between, std::string_view content, std::string_view next) {
  constexpr size_t kClose = 10;
  constexpr size_t kJoined = 70;
  if (count_code_points(between) < kClose) return true;
  return content != next && count_code_points(between) < kJoined &&
         (between.find_first_of(",;") != kNone || has_word(between, "and") ||
          has_word(between, "or"));
}

}  // namespace

std::optional<std::string_view> last_boxed(std::string_view text) {
  size_t begin = text.rfind(kBoxed);
  size_t open = begin + kBoxed.size();
  if (begin == kNone) {
    begin = text.rfind(kFbox);
    if (begin == kNone) return std::nullopt;
    open = begin + kFbox.size();
  }
  if (open >= text.size() || text[open] != '{') return std::nullopt;
  const size_t end = end_of_braces(text, open, text.size());
  if (end == kNone) return std::nullopt;
  return text.substr(open + 1, end - open - 2);
}

std::string join_boxes(std::string_view text, BoxChoice choice) {
  std::vector<std::string_view> contents;  // from the last one back
  size_t next_begin = text.size();         // of the box behind the one looked at
  size_t boxed = text.rfind(kBoxed);
  size_t fbox = text.rfind(kFbox);
  while (boxed != kNone || fbox != kNone) {
    const bool is_boxed = fbox == kNone || (boxed != kNone && boxed > fbox);
    const size_t begin = is_boxed ? boxed : fbox;
    size_t open = begin + (is_boxed ? kBoxed : kFbox).size();
    while (open < next_begin && is_space(text[open])) ++open;
    if (open >= next_begin) break;
    const size_t end = text[open] == '{' ? end_of_braces(text, open, next_begin) : kNone;
    if (end == kNone) {
      if (contents.empty()) contents.push_back(text.substr(open, next_begin - open));
      break;
    }
    const std::string_view content = trim(text.substr(open + 1, end - open - 2));
    if (choice == BoxChoice::kLast && !contents.empty() &&
        !belongs(text.substr(end, next_begin - end), content, contents.back())) {
      break;
    }
    if (contents.empty() || contents.back() != content) contents.push_back(content);
    next_begin = begin;
    // Only the kind that was taken is searched for again: thousands of boxes stay linear.
    size_t& taken = is_boxed ? boxed : fbox;
    taken = begin == 0 ? kNone : text.rfind(is_boxed ? kBoxed : kFbox, begin - 1);
  }
  if (contents.empty()) return std::string(text);
  std::string joined;
  for (size_t i = contents.size(); i-- > 0;) {
    joined += contents[i];
    if (i > 0) joined += ',';
  }
  return joined;
}

}  // namespace nibble
