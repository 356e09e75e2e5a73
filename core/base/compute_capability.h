#pragma once

#include <string_view>

namespace nibble {

/// Refuses a GPU that our kernels have no machine code for: older than compute capability 8.0
/// (Ampere), whose tensor cores do not take BF16. Throws Error{kFailedPrecondition} naming it.
void check_compute_capability(int index, std::string_view name, int major, int minor);

}  // namespace nibble
