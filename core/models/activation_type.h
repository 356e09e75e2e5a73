#pragma once

namespace nibble {

/// What activations are rounded to between operations. float32 is the CPU's numerics; bfloat16
/// rounds every operation's result, as a BF16 model would.
enum class ActivationType { kFloat32, kBfloat16 };

}  // namespace nibble
