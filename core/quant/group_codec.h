#pragma once

#include <cmath>
#include <cstdint>

#include "core/base/host_device.h"
#include "core/quant/bf16.h"

// The only arithmetic in Nibble that turns a weight into a code. Converter, trainer, packer and
// kernels, on CPU and CUDA, all call these functions; shared fixtures pin them bit for bit.

namespace nibble::quant {

/// How a group's scale follows from its largest magnitude.
enum class Grid : uint8_t {
  kSym7,    ///< INT4: s = bf16(absmax / 7), codes [-7, 7]. Idempotent; the training grid.
  kSym7p5,  ///< INT4: s = bf16(absmax / 7.5), codes [-8, 7]. llm-compressor's RTN; held scales
            ///< only.
  kSym127,  ///< INT8: s = bf16(absmax / 127), codes [-127, 127].
};

/// Code range and divisor of a grid.
struct GridLimits {
  float divisor;
  int min_code;
  int max_code;
};

NIBBLE_HOST_DEVICE inline GridLimits grid_limits(Grid grid) {
  switch (grid) {
    case Grid::kSym7p5:
      return {7.5f, -8, 7};
    case Grid::kSym127:
      return {127.0f, -127, 127};
    case Grid::kSym7:
      break;
  }
  return {7.0f, -7, 7};
}

constexpr uint16_t kBf16One = 0x3f80;
constexpr uint16_t kBf16SmallestNormal = 0x0080;  // 2^-126
constexpr uint16_t kBf16Epsilon = 0x3c00;         // 2^-7: compressed-tensors' for a zero scale

/// BF16 scale of a group from its largest magnitude. The scale is rounded before it divides,
/// which makes sym7 idempotent. A zero or subnormal scale becomes 1, so that every code is 0
/// (sym7p5 follows compressed-tensors there: the BF16 epsilon for a zero scale).
NIBBLE_HOST_DEVICE inline uint16_t group_scale(float absmax, Grid grid) {
  const uint16_t scale = float_to_bf16(absmax / grid_limits(grid).divisor);
  if (grid == Grid::kSym7p5) return scale == 0 ? kBf16Epsilon : scale;
  return scale < kBf16SmallestNormal ? kBf16One : scale;
}

/// Code of one weight: clamp(rint(w / s)), IEEE FP32 division, half to even.
NIBBLE_HOST_DEVICE inline int quantize_code(float weight, float scale, Grid grid) {
  const GridLimits limits = grid_limits(grid);
  const float code = rintf(weight / scale);
  const float low = static_cast<float>(limits.min_code);
  const float high = static_cast<float>(limits.max_code);
  return static_cast<int>(code < low ? low : (code > high ? high : code));
}

/// Code of a master under a held scale, codes [-8, 7] (shared fixtures: calibrated_*).
NIBBLE_HOST_DEVICE inline int quantize_held(float master, float scale) {
  const float code = rintf(master / scale);
  return static_cast<int>(code < -8.0f ? -8.0f : (code > 7.0f ? 7.0f : code));
}

/// What trainer and rollout multiply with: bf16(q * s). From the integer code, so zeros are +0.0.
NIBBLE_HOST_DEVICE inline uint16_t dequantize_code(int code, float scale) {
  return float_to_bf16(static_cast<float>(code) * scale);
}

}  // namespace nibble::quant
