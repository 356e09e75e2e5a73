#pragma once

#include <cstdint>

#include "core/kernels/parallel.h"

namespace nibble::kernels {

/// Cosines and sines by position, float32 [num_positions, head_dim / 2], borrowed.
struct RopeTable {
  const float* cosine = nullptr;
  const float* sine = nullptr;
  int64_t half = 0;  ///< head_dim / 2, multiple of 8
  int64_t num_positions = 0;
};

enum class RopeDirection { kForward, kBackward };

/// Rotates pairs (i, i + half) of every head in place; backward turns the other way, which is the
/// gradient.
///   x         float32 [tokens, heads, 2 * half]
///   position  int32 [tokens], each in [0, num_positions)
void rope(float* x, const int32_t* position, int64_t tokens, int64_t heads, const RopeTable& table,
          RopeDirection direction, const Parallel& parallel);

}  // namespace nibble::kernels
