#pragma once

#include <string>

namespace nibble {

/// Whether a pattern of an ignore list (what follows "re:") matches the start of a module's name,
/// as compressed-tensors' re.match does. Throws Error{kInvalidArgument} naming a pattern that is
/// none, and one whose search does not end within a fixed number of steps.
bool matches_module_pattern(const std::string& pattern, const std::string& module);

}  // namespace nibble
