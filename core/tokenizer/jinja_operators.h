#pragma once

#include <string_view>

#include "core/tokenizer/jinja_ast.h"
#include "core/tokenizer/jinja_runtime.h"

namespace nibble::jinja {

/// Python's operators on template values. What raises in Python fails here, with the line.

/// a == b.
bool equal(Runtime& runtime, const Value& a, const Value& b);
/// <0, 0, >0 for what Python can order: numbers, strings, lists with lists, tuples with tuples.
int order(Runtime& runtime, const Value& a, const Value& b);
/// kEq .. kNotIn.
bool compare(Runtime& runtime, Op op, const Value& a, const Value& b);
/// kAdd .. kPow. Integers that do not fit into 64 bits fail.
Value arithmetic(Runtime& runtime, Op op, const Value& a, const Value& b);
Value negate(Runtime& runtime, const Value& value);

/// value.name as Jinja has it: methods before keys.
Value get_attribute(Runtime& runtime, const Value& value, std::string_view name);
/// value[key]: keys before methods.
Value get_item(Runtime& runtime, const Value& value, const Value& key);
/// value[begin:end:step]; None where not written.
Value get_slice(Runtime& runtime, const Value& value, const List& bounds);

/// What a for loop over the value visits. Uses generators up.
List iterate(Runtime& runtime, const Value& value);
/// len(value).
int64_t length(Runtime& runtime, const Value& value);

}  // namespace nibble::jinja
