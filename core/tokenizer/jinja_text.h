#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/tokenizer/jinja_runtime.h"

namespace nibble::jinja {

/// Python's texts of values: str(), repr(), json.dumps().

/// str(value). Fails for what has no portable text (functions, generators).
std::string to_str(const Runtime& runtime, const Value& value);
/// repr(value); strings are quoted and escaped.
std::string to_repr(const Runtime& runtime, const Value& value);
/// repr of a float: the shortest digits that read back, "1e+16", "1.0", "inf".
std::string float_repr(double value);

/// Arguments of json.dumps. The defaults are those of Transformers' tojson.
struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool pretty = false;  ///< one item per line
  std::string indent;   ///< of one level; only if pretty
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
std::string to_json(const Runtime& runtime, const Value& value, const JsonStyle& style);

/// str.isspace() of one character.
bool is_python_space(char32_t c);
/// The characters as UTF-8 pieces of `text`.
std::vector<std::string_view> characters(std::string_view text);
/// len(text).
size_t character_count(std::string_view text);
/// str.upper(), lower() with one-to-one mappings (German sharp s stays).
std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
/// str.capitalize().
std::string capitalize(std::string_view text);

/// Which ends strip_text works on.
enum class Ends { kBoth, kLeft, kRight };
/// str.strip(chars); null: white space.
std::string_view strip_text(std::string_view text, const std::string* chars, Ends ends);
/// str.splitlines(keepends).
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);
/// Linear-time search; npos if there is none.
size_t find_text(std::string_view text, std::string_view wanted, size_t from = 0);
/// str.replace(from, to, count); a negative count replaces all.
std::string replace_text(const Runtime& runtime, std::string_view text, std::string_view from,
                         std::string_view to, int64_t count);

}  // namespace nibble::jinja
