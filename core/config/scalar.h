#pragma once

#include <string>

#include "core/config/fields.h"
#include "core/config/yaml_tree.h"

namespace nibble {

/// Reads `node` into `target`. Returns "" or what is wrong, as in "want an integer, got 'x'".
/// No conversion between kinds: a quoted "1" is no integer, 1.5 neither; text takes any scalar.
std::string assign_scalar(const ScalarRef& target, const Limits& limits, const YamlNode& node);

/// The value as YAML, quoted where needed, so that assign_scalar reads it back exactly.
std::string scalar_to_yaml(const ScalarRef& source);

/// For people: "integer", "number", "true or false", "text", "path", or "a | b" for an enum.
std::string scalar_type_name(const ScalarRef& scalar);

}  // namespace nibble
