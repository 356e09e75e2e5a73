#pragma once

#include <cstdint>

#include "core/base/json.h"

namespace arrow {
class Array;
}

namespace nibble {

/// The value of row `i` of a column: strings, numbers, booleans, lists and structs of such, also
/// dictionary-encoded. A field of a struct that is null is left out, as a line of JSON would leave
/// it out: columns have every field in every row. Throws Error{kInvalidArgument} naming an Arrow
/// type that is not read (binary, dates, maps, ...) and for nesting deeper than 32.
Json arrow_to_json(const arrow::Array& array, int64_t i);

}  // namespace nibble
