#pragma once

#include <string_view>

#include "core/tokenizer/jinja_runtime.h"

namespace nibble::jinja {

/// value | name(arguments).
struct Filter {
  std::string_view name;
  Value (*apply)(Runtime& runtime, const Value& value, const Arguments& arguments);
};

/// The filter of that name, or null. As in Jinja, but for tojson, which is Transformers'.
const Filter* find_filter(std::string_view name);

/// The half of them that works on sequences (map, select, sort, join, ...); for find_filter.
const Filter* find_sequence_filter(std::string_view name);

}  // namespace nibble::jinja
