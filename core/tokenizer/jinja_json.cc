#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "core/tokenizer/jinja_text.h"
#include "core/tokenizer/utf8.h"

namespace nibble::jinja {

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 40> buffer;
  const auto written = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                     std::chars_format::scientific);
  const std::string_view text(buffer.data(), static_cast<size_t>(written.ptr - buffer.data()));
  const size_t mark = text.find('e');
  const int exponent = std::stoi(std::string(text.substr(mark + 1)));
  const bool negative = text[0] == '-';
  std::string digits;
  for (const char c : text.substr(0, mark)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  std::string out = negative ? "-" : "";
  if (exponent < -4 || exponent >= 16) {
    const std::string_view dot = digits.size() > 1 ? "." : "";
    return fmt::format("{}{}{}{}e{}{:02}", out, digits[0], dot, digits.substr(1),
                       exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return fmt::format("{}0.{}{}", out, std::string(-exponent - 1, '0'), digits);
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() < whole) digits.append(whole - digits.size(), '0');
  const std::string fraction = digits.size() > whole ? digits.substr(whole) : "0";
  return fmt::format("{}{}.{}", out, digits.substr(0, whole), fraction);
}

namespace {

// str.isprintable(): everything but separators, controls and unassigned; the space is printable.
bool is_printable(char32_t c) {
  if (c == ' ') return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

std::string quote_repr(std::string_view text) {
  const bool use_double =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = use_double ? '"' : '\'';
  std::string out(1, quote);
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Step step = utf8_step(text, pos);
    const char32_t c = step.code_point;
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\\' || c == static_cast<char32_t>(quote)) {
      out += '\\';
      out += static_cast<char>(c);
    } else if (is_printable(c)) {
      out += text.substr(pos, step.bytes);
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
    }
    pos += step.bytes;
  }
  return out + quote;
}

std::string repr_sequence(const Runtime& runtime, const Sequence& sequence) {
  const bool tuple = sequence.form == Sequence::Form::kTuple;
  std::string out(1, tuple ? '(' : '[');
  for (size_t i = 0; i < sequence.items.size(); ++i) {
    if (i > 0) out += ", ";
    out += to_repr(runtime, sequence.items[i]);
    runtime.check_text_size(out.size(), 0);
  }
  if (tuple && sequence.items.size() == 1) out += ',';
  return out + (tuple ? ')' : ']');
}

std::string repr_dict(const Runtime& runtime, const Dict& dict) {
  std::string out = "{";
  for (const auto& [key, value] : dict.entries) {
    if (out.size() > 1) out += ", ";
    out += to_repr(runtime, key);
    out += ": ";
    out += to_repr(runtime, value);
    runtime.check_text_size(out.size(), 0);
  }
  return out + "}";
}

}  // namespace

std::string to_repr(const Runtime& runtime, const Value& value) {
  if (value.is_none()) return "None";
  if (value.is_undefined()) return "Undefined";
  if (value.is_bool()) return value.truthy() ? "True" : "False";
  if (value.is_int()) return std::to_string(value.as_int());
  if (value.is_float()) return float_repr(value.as_double());
  if (const std::string* text = value.string()) return quote_repr(*text);
  if (const Dict* dict = value.dict()) return repr_dict(runtime, *dict);
  const Sequence* sequence = value.sequence();
  if (sequence != nullptr && sequence->printable()) return repr_sequence(runtime, *sequence);
  runtime.error("a {} cannot be printed", value.type_name());
}

std::string to_str(const Runtime& runtime, const Value& value) {
  if (const std::string* text = value.string()) return *text;
  return value.is_undefined() ? std::string() : to_repr(runtime, value);
}

namespace {

/// Writes one value as json.dumps does.
class JsonWriter {
 public:
  JsonWriter(const Runtime& runtime, const JsonStyle& style) : runtime_(runtime), style_(style) {}

  void write(const Value& value, int level) {
    runtime_.check_text_size(out_.size(), 0);
    if (value.is_none()) {
      out_ += "null";
    } else if (value.is_bool()) {
      out_ += value.truthy() ? "true" : "false";
    } else if (value.is_number()) {
      write_number(value);
    } else if (const std::string* text = value.string()) {
      write_string(*text);
    } else if (const Dict* dict = value.dict()) {
      write_dict(*dict, level);
    } else if (const Sequence* list = value.sequence(); list != nullptr && list->printable()) {
      write_list(*list, level);
    } else {
      runtime_.error("tojson: a value of type {} has no JSON form", value.type_name());
    }
  }
  std::string take() { return std::move(out_); }

 private:
  void write_number(const Value& value) {
    if (value.is_int()) {
      out_ += std::to_string(value.as_int());
    } else if (std::isfinite(value.as_double())) {
      out_ += float_repr(value.as_double());
    } else {
      out_ += std::isnan(value.as_double()) ? "NaN"
              : value.as_double() < 0       ? "-Infinity"
                                            : "Infinity";
    }
  }

  void write_escaped(char32_t c) {
    if (c >= 0x10000) {
      write_escaped(0xD800 + ((c - 0x10000) >> 10));
      write_escaped(0xDC00 + ((c - 0x10000) & 0x3FF));
    } else {
      out_ += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    }
  }

  void write_string(std::string_view text) {
    constexpr std::string_view kShort = "\"\\\n\r\t\f\b";
    constexpr std::string_view kLetters = "\"\\nrtfb";
    out_ += '"';
    for (size_t pos = 0; pos < text.size();) {
      const Utf8Step step = utf8_step(text, pos);
      const size_t special = text[pos] == 0 ? std::string_view::npos : kShort.find(text[pos]);
      if (special != std::string_view::npos) {
        out_ += '\\';
        out_ += kLetters[special];
      } else if (step.code_point < 0x20 || (style_.ensure_ascii && step.code_point > 0x7E)) {
        write_escaped(step.code_point);
      } else {
        out_ += text.substr(pos, step.bytes);
      }
      pos += step.bytes;
    }
    out_ += '"';
  }

  void new_line(int level) {
    if (!style_.pretty) return;
    out_ += '\n';
    for (int i = 0; i < level; ++i) out_ += style_.indent;
  }

  void write_list(const Sequence& list, int level) {
    out_ += '[';
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      new_line(level + 1);
      write(list.items[i], level + 1);
    }
    if (!list.items.empty()) new_line(level);
    out_ += ']';
  }

  void write_key(const Value& key) {
    if (key.is_string()) return write_string(*key.string());
    if (!key.is_none() && !key.is_number()) {
      runtime_.error("tojson: a key of type {} has no JSON form", key.type_name());
    }
    out_ += '"';
    write(key, 0);
    out_ += '"';
  }

  void write_dict(const Dict& dict, int level) {
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.entries) entries.push_back(&entry);
    if (style_.sort_keys) {
      if (dict.by_text.size() != dict.entries.size()) {
        runtime_.error("tojson: sort_keys needs keys that are strings");
      }
      std::sort(entries.begin(), entries.end(),
                [](auto* a, auto* b) { return *a->first.string() < *b->first.string(); });
    }
    out_ += '{';
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      new_line(level + 1);
      write_key(entries[i]->first);
      out_ += style_.key_separator;
      write(entries[i]->second, level + 1);
    }
    if (!entries.empty()) new_line(level);
    out_ += '}';
  }

  const Runtime& runtime_;
  const JsonStyle& style_;
  std::string out_;
};

}  // namespace

std::string to_json(const Runtime& runtime, const Value& value, const JsonStyle& style) {
  JsonWriter writer(runtime, style);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace nibble::jinja
