#pragma once

namespace nibble {

/// What a pass under gradients drops of a decoder layer's activations and computes again before
/// the layer's backward pass. The same bits come back, so that gradients do not depend on it.
enum class Recompute {
  kNone,
  kSelective,  ///< results of norms, of RoPE after a norm, and of silu(gate) * up: no products
  kFull,       ///< all but the layer's input: the layer runs a second time
};

}  // namespace nibble
