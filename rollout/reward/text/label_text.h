#pragma once

#include <string>

#include "core/base/json.h"

namespace nibble {

/// A label that is a string or a number, as text. Throws Error{kInvalidArgument} for another type
/// and for a number with more digits than a JSON number keeps.
std::string label_text(const Json& label);

}  // namespace nibble
