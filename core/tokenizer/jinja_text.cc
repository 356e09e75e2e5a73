#include "core/tokenizer/jinja_text.h"

#include <string.h>
#include <utf8proc.h>

#include <algorithm>

#include "core/tokenizer/utf8.h"

namespace nibble::jinja {

bool is_python_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  for (size_t pos = 0; pos < text.size();) {
    const int bytes = utf8_step(text, pos).bytes;
    out.push_back(text.substr(pos, bytes));
    pos += bytes;
  }
  return out;
}

size_t character_count(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

namespace {

template <typename Map>
std::string map_characters(std::string_view text, Map map) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = utf8_step(text, pos);
    append_utf8(out, static_cast<char32_t>(map(static_cast<utf8proc_int32_t>(step.code_point))));
    pos += step.bytes;
  }
  return out;
}

}  // namespace

std::string to_upper(std::string_view text) { return map_characters(text, utf8proc_toupper); }
std::string to_lower(std::string_view text) { return map_characters(text, utf8proc_tolower); }

std::string capitalize(std::string_view text) {
  if (text.empty()) return {};
  const auto first = static_cast<size_t>(utf8_step(text, 0).bytes);
  return map_characters(text.substr(0, first), utf8proc_totitle) + to_lower(text.substr(first));
}

std::string_view strip_text(std::string_view text, const std::string* chars, Ends ends) {
  std::vector<char32_t> wanted;
  if (chars != nullptr) {
    for (const std::string_view c : characters(*chars))
      wanted.push_back(utf8_step(c, 0).code_point);
  }
  const auto drop = [&](char32_t c) {
    if (chars == nullptr) return is_python_space(c);
    return std::find(wanted.begin(), wanted.end(), c) != wanted.end();
  };
  while (ends != Ends::kRight && !text.empty()) {
    const Utf8Step step = utf8_step(text, 0);
    if (!drop(step.code_point)) break;
    text.remove_prefix(step.bytes);
  }
  while (ends != Ends::kLeft && !text.empty()) {
    size_t last = text.size() - 1;
    while (last > 0 && (static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
    if (!drop(utf8_step(text, last).code_point)) break;
    text = text.substr(0, last);
  }
  return text;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = utf8_step(text, pos);
    const char32_t c = step.code_point;
    size_t next = pos + step.bytes;
    const bool ends_line = (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
                           c == 0x2028 || c == 0x2029;
    if (ends_line) {
      if (c == '\r' && next < text.size() && text[next] == '\n') ++next;
      lines.push_back(text.substr(begin, (keep_ends ? next : pos) - begin));
      begin = next;
    }
    pos = next;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

size_t find_text(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (wanted.empty()) return from;
  constexpr size_t kShort = 32;  // the find of the library takes time in the order of the product
  if (wanted.size() <= kShort) return text.find(wanted, from);
  const void* found = memmem(text.data() + from, text.size() - from, wanted.data(), wanted.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

std::string replace_text(const Runtime& runtime, std::string_view text, std::string_view from,
                         std::string_view to, int64_t count) {
  std::string out;
  const auto add = [&](std::string_view piece) {
    runtime.check_text_size(out.size(), piece.size());
    out += piece;
  };
  size_t pos = 0;
  for (int64_t done = 0; count < 0 || done < count; ++done) {
    const size_t at = find_text(text, from, pos);
    if (at == std::string_view::npos) break;
    add(text.substr(pos, at - pos));
    add(to);
    pos = at + from.size();
    if (!from.empty()) continue;
    if (pos >= text.size()) return out;  // Python also inserts before the end
    const int bytes = utf8_step(text, pos).bytes;
    add(text.substr(pos, bytes));
    pos += bytes;
  }
  add(text.substr(pos));
  return out;
}

}  // namespace nibble::jinja
