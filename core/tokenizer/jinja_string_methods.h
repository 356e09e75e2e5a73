#pragma once

#include <string_view>

#include "core/tokenizer/jinja_runtime.h"

namespace nibble::jinja {

using StringMethod = Value (*)(Runtime& runtime, const std::string& self,
                               const Arguments& arguments);

/// A method of Python's str, or null.
StringMethod find_string_method(std::string_view name);

}  // namespace nibble::jinja
