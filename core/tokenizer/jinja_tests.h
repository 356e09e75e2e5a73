#pragma once

#include <string_view>

#include "core/tokenizer/jinja_runtime.h"

namespace nibble::jinja {

/// value is name(arguments).
struct Test {
  std::string_view name;
  bool (*holds)(Runtime& runtime, const Value& value, const Arguments& arguments);
};

/// Jinja's test of that name, or null.
const Test* find_test(std::string_view name);

}  // namespace nibble::jinja
