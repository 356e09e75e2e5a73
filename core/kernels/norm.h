#pragma once

#include <cstdint>

#include "core/kernels/parallel.h"

namespace nibble::kernels {

/// Rows of equal width and their RMS-norm weight.
struct NormShape {
  int64_t rows = 0;
  int64_t cols = 0;  ///< multiple of 16
  float eps = 1e-6f;
};

/// y = x / sqrt(mean(x^2) + eps) * weight, the mean in Nibble's 16-lane order.
///   x, y    float32 [rows, cols]; may be the same array
///   weight  BF16 bits [cols]
void rms_norm(const float* x, const uint16_t* weight, const NormShape& shape, float* y,
              const Parallel& parallel);

/// Gradients of rms_norm.
///   x, dy    float32 [rows, cols]
///   dx       float32 [rows, cols], overwritten; may be dy
///   dweight  float32 [cols], added to
void rms_norm_backward(const float* x, const uint16_t* weight, const float* dy,
                       const NormShape& shape, float* dx, float* dweight, const Parallel& parallel);

}  // namespace nibble::kernels
