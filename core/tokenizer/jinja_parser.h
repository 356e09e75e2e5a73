#pragma once

#include <string_view>

#include "core/tokenizer/jinja_ast.h"

namespace nibble::jinja {

/// Parses a template. Statements: if, for (with if, else; break, continue), set (also as a block),
/// macro, with, filter, generation. Throws Error{kInvalidArgument} "<name> line <n>: ..." for a
/// mistake, for an unknown filter, test or statement, and for nesting deeper than 100 tags or 200
/// expressions.
Block parse_template(std::string_view source, std::string_view name);

}  // namespace nibble::jinja
