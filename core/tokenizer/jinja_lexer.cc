#include "core/tokenizer/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>

#include "core/base/fail.h"
#include "core/tokenizer/jinja_text.h"
#include "core/tokenizer/utf8.h"

namespace nibble::jinja {

void fail_at(std::string_view name, int line, std::string_view message) {
  fail(ErrorCode::kInvalidArgument, "{} line {}: {}", name, line, message);
}

namespace {

std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_name_byte(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

class Lexer {
 public:
  Lexer(std::string_view source, std::string_view name) : in_(source), name_(name) {}

  std::vector<Token> run() {
    while (pos_ < in_.size()) template_text();
    add(Token::Type::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void error(std::string_view message) const { fail_at(name_, line_, message); }
  bool at(std::string_view text) const { return in_.substr(pos_, text.size()) == text; }
  void add(Token::Type type, std::string text) {
    tokens_.push_back({type, std::move(text), line_});
  }

  /// Moves on, counting lines and remembering whether a line starts here.
  void advance(size_t count) {
    const std::string_view passed = in_.substr(pos_, count);
    line_ += static_cast<int>(std::count(passed.begin(), passed.end(), '\n'));
    if (!passed.empty()) line_starting_ = passed.back() == '\n';
    pos_ += count;
  }

  size_t spaces_at(size_t pos) const {
    size_t end = pos;
    while (end < in_.size()) {
      const Utf8Step step = utf8_step(in_, end);
      if (!is_python_space(step.code_point)) break;
      end += step.bytes;
    }
    return end - pos;
  }

  /// The next "{{", "{%" or "{#" at or after `pos`, or the end.
  size_t find_tag(size_t pos) const {
    for (; pos + 1 < in_.size(); ++pos) {
      if (in_[pos] == '{' && (in_[pos + 1] == '{' || in_[pos + 1] == '%' || in_[pos + 1] == '#')) {
        return pos;
      }
    }
    return in_.size();
  }

  /// Applies '-', '+' and lstrip_blocks to the text before a tag.
  std::string_view strip_before(std::string_view text, char sign, bool variable) const {
    if (sign == '-') return strip_text(text, nullptr, Ends::kRight);
    if (sign == '+' || variable) return text;
    const size_t newline = text.rfind('\n');
    const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
    if (line_begin == 0 && !line_starting_) return text;
    const std::string_view last_line = text.substr(line_begin);
    return strip_text(last_line, nullptr, Ends::kBoth).empty() ? text.substr(0, line_begin) : text;
  }

  void add_data(std::string_view text) {
    if (!text.empty()) add(Token::Type::kData, std::string(text));
  }

  void template_text() {
    const size_t tag = find_tag(pos_);
    const std::string_view text = in_.substr(pos_, tag - pos_);
    if (tag == in_.size()) {
      add_data(text);
      advance(text.size());
      return;
    }
    const char kind = in_[tag + 1];
    const char sign = tag + 2 < in_.size() ? in_[tag + 2] : ' ';
    const bool signed_tag = sign == '-' || sign == '+';
    add_data(strip_before(text, signed_tag ? sign : ' ', kind == '{'));
    advance(text.size() + 2 + (signed_tag ? 1 : 0));
    if (kind == '#') return comment();
    if (kind == '{') {
      add(Token::Type::kVariableBegin, "{{");
      return expression(Token::Type::kVariableEnd, "}}");
    }
    if (raw_block()) return;
    add(Token::Type::kBlockBegin, "{%");
    expression(Token::Type::kBlockEnd, "%}");
  }

  /// Length of the closing tag at `pos` with what white space control makes it swallow, or 0.
  size_t closing_length(size_t pos, std::string_view close) const {
    const auto starts = [&](size_t from) { return in_.substr(from, close.size()) == close; };
    const bool block = close != "}}";
    if (pos < in_.size() && in_[pos] == '-' && starts(pos + 1)) {
      const size_t length = 1 + close.size();
      return length + spaces_at(pos + length);
    }
    if (block && pos < in_.size() && in_[pos] == '+' && starts(pos + 1)) return 1 + close.size();
    if (!starts(pos)) return 0;
    const size_t end = pos + close.size();
    return close.size() + (block && end < in_.size() && in_[end] == '\n' ? 1 : 0);
  }

  void comment() {
    for (size_t end = pos_; end < in_.size(); ++end) {
      if (in_[end] != '#' && in_[end] != '-' && in_[end] != '+') continue;
      const size_t length = closing_length(end, "#}");
      if (length == 0) continue;
      return advance(end - pos_ + length);
    }
    error("a comment {# is not closed");
  }

  /// After "{%": takes the whole of {% raw %} ... {% endraw %} if that is what stands here.
  bool raw_block() {
    size_t end = pos_ + spaces_at(pos_);
    if (in_.substr(end, 3) != "raw") return false;
    end += 3;
    end += spaces_at(end);
    if (in_.substr(end, 3) == "-%}") {
      end += 3;
      end += spaces_at(end);
    } else if (in_.substr(end, 2) == "%}") {
      end += 2;
    } else {
      return false;
    }
    advance(end - pos_);
    for (size_t tag = in_.find("{%", pos_); tag != std::string_view::npos;
         tag = in_.find("{%", tag + 1)) {
      size_t close = tag + 2;
      const char sign = close < in_.size() ? in_[close] : ' ';
      if (sign == '-' || sign == '+') ++close;
      close += spaces_at(close);
      if (in_.substr(close, 6) != "endraw") continue;
      close += 6;
      close += spaces_at(close);
      const size_t length = closing_length(close, "%}");
      if (length == 0) continue;
      add_data(strip_before(in_.substr(pos_, tag - pos_), sign, false));
      advance(close + length - pos_);
      return true;
    }
    error("{% raw %} is not closed");
  }

  void expression(Token::Type end_type, std::string_view close) {
    const int begin_line = line_;
    std::string brackets;  // what is open, as the closing characters wanted
    while (true) {
      advance(spaces_at(pos_));
      if (pos_ >= in_.size()) {
        line_ = begin_line;
        error("a tag is not closed");
      }
      if (const size_t length = brackets.empty() ? closing_length(pos_, close) : 0; length > 0) {
        add(end_type, std::string(close));
        return advance(length);
      }
      const char c = in_[pos_];
      if (c == '\'' || c == '"') {
        string_literal(c);
      } else if (is_digit(c)) {
        number();
      } else if (is_name_byte(c)) {
        size_t end = pos_;
        while (end < in_.size() && is_name_byte(in_[end])) ++end;
        add(Token::Type::kName, std::string(in_.substr(pos_, end - pos_)));
        advance(end - pos_);
      } else {
        operator_token(brackets);
      }
    }
  }

  void operator_token(std::string& brackets) {
    static constexpr std::array<std::string_view, 26> kOperators = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (const std::string_view text : kOperators) {
      if (!at(text)) continue;
      if (text == "(") brackets += ')';
      if (text == "[") brackets += ']';
      if (text == "{") brackets += '}';
      if (text == ")" || text == "]" || text == "}") {
        if (brackets.empty() || brackets.back() != text[0])
          error(fmt::format("unexpected {}", text));
        brackets.pop_back();
      }
      add(Token::Type::kOperator, std::string(text));
      return advance(text.size());
    }
    error(fmt::format("unexpected character '{}'", in_.substr(pos_, 1)));
  }

  size_t digits_at(size_t pos) const {
    size_t end = pos;
    while (end < in_.size() &&
           (is_digit(in_[end]) || (in_[end] == '_' && end > pos && in_[end - 1] != '_' &&
                                   end + 1 < in_.size() && is_digit(in_[end + 1])))) {
      ++end;
    }
    return end - pos;
  }

  void number() {
    size_t end = pos_ + digits_at(pos_);
    const bool after_dot = pos_ > 0 && in_[pos_ - 1] == '.';  // a.1.2 indexes twice
    bool is_float = false;
    if (!after_dot && end < in_.size() && in_[end] == '.' && digits_at(end + 1) > 0) {
      end += 1 + digits_at(end + 1);
      is_float = true;
    }
    if (!after_dot && end < in_.size() && (in_[end] == 'e' || in_[end] == 'E')) {
      size_t digits = end + 1;
      if (digits < in_.size() && (in_[digits] == '+' || in_[digits] == '-')) ++digits;
      if (digits_at(digits) > 0) {
        end = digits + digits_at(digits);
        is_float = true;
      }
    }
    std::string text(in_.substr(pos_, end - pos_));
    if (end < in_.size() && is_name_byte(in_[end])) error("bad number after " + text);
    if (!is_float && text.size() > 1 && text[0] == '0')
      error("a number cannot start with 0: " + text);
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    add(is_float ? Token::Type::kFloat : Token::Type::kInteger, text);
    advance(end - pos_);
  }

  void string_literal(char quote) {
    size_t end = pos_ + 1;
    while (end < in_.size() && in_[end] != quote) end += in_[end] == '\\' ? 2 : 1;
    if (end >= in_.size()) error("a string is not closed");
    add(Token::Type::kString, unescape(in_.substr(pos_ + 1, end - pos_ - 1)));
    advance(end + 1 - pos_);
  }

  /// The escapes of Python's string literals; an unknown one keeps its backslash.
  std::string unescape(std::string_view text) const {
    constexpr std::string_view kLetters = "ntr\\'\"abfv";
    constexpr std::string_view kMeanings = "\n\t\r\\'\"\a\b\f\v";
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        out += text[i];
        continue;
      }
      const char c = text[++i];
      if (const size_t known = kLetters.find(c); known != std::string_view::npos) {
        out += kMeanings[known];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        append_code(out, text.substr(i + 1, digits), digits, 16);
        i += digits;
      } else if (c >= '0' && c <= '7') {
        size_t digits = 1;
        while (digits < 3 && i + digits < text.size() && text[i + digits] >= '0' &&
               text[i + digits] <= '7') {
          ++digits;
        }
        append_code(out, text.substr(i, digits), digits, 8);
        i += digits - 1;
      } else if (c == 'N') {
        error("\\N{...} in a string is not supported");
      } else if (c != '\n') {
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  void append_code(std::string& out, std::string_view digits, size_t count, int base) const {
    const bool good =
        digits.size() == count && std::all_of(digits.begin(), digits.end(), [](char c) {
          return std::isxdigit(static_cast<unsigned char>(c)) != 0;
        });
    const unsigned long code = good ? std::stoul(std::string(digits), nullptr, base) : 0x110000;
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
      error(fmt::format("bad escape '{}' in a string", digits));
    }
    append_utf8(out, static_cast<char32_t>(code));
  }

  std::string_view in_;
  std::string_view name_;
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source, std::string_view name) {
  const std::string normal = normalize_newlines(source);
  return Lexer(normal, name).run();
}

}  // namespace nibble::jinja
