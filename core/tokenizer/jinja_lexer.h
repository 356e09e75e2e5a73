#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble::jinja {

struct Token {
  enum class Type {
    kData,           ///< text between tags, white space control applied
    kVariableBegin,  ///< {{
    kVariableEnd,
    kBlockBegin,  ///< {%
    kBlockEnd,
    kName,
    kString,  ///< unescaped
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Type type = Type::kEnd;
  std::string text;
  int line = 1;
};

/// Cuts a template into tokens as Jinja does with trim_blocks and lstrip_blocks, the settings of
/// Transformers; comments are dropped, {% raw %} becomes data, one newline at the very end is
/// dropped. The last token is kEnd. Throws Error{kInvalidArgument} "<name> line <n>: ...".
std::vector<Token> tokenize(std::string_view source, std::string_view name);

/// Throws Error{kInvalidArgument} "<name> line <line>: <message>".
[[noreturn]] void fail_at(std::string_view name, int line, std::string_view message);

}  // namespace nibble::jinja
