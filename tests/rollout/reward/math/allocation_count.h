#pragma once

#include <cstdint>

namespace nibble {

/// Calls of operator new in this program so far.
int64_t allocation_count();

}  // namespace nibble
