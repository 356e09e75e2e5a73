#pragma once

#include <string_view>

#include "core/tokenizer/jinja_runtime.h"

namespace nibble::jinja {

/// Whether value.name is a method of Python's str, dict, list or tuple that templates may call, or
/// of `loop`. Methods that change their object do not exist, as in Jinja's immutable sandbox.
bool has_method(const Value& value, std::string_view name);

/// Calls a Callable of type kMethod. Fails where Python raises.
Value call_method(Runtime& runtime, const Callable& method, const Arguments& arguments);

/// range, dict, namespace, raise_exception, strftime_now.
bool is_function(std::string_view name);

/// Calls one of them. raise_exception fails with the template's message.
Value call_function(Runtime& runtime, std::string_view name, const Arguments& arguments);

}  // namespace nibble::jinja
