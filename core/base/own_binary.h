#pragma once

#include <filesystem>

namespace nibble {

/// Path of the running program. Its helpers lie beside it. Throws Error{kInternal} if the system
/// does not say.
std::filesystem::path own_binary();

}  // namespace nibble
