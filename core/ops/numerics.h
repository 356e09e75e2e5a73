#pragma once

namespace nibble {

/// exact: trainer and engine agree to the bit. fast: to rounding. On the CPU there is exact only.
enum class Numerics { kExact, kFast };

}  // namespace nibble
