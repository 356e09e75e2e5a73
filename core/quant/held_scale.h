#pragma once

#include <cstdint>
#include <cstring>

#include "core/base/host_device.h"
#include "core/quant/bf16.h"
#include "core/quant/group_codec.h"

namespace nibble::quant {

// Arithmetic of `qat.start: calibrated`: masters that stay inside the rounding cells of a
// calibrated checkpoint while its scales are held. CPU and CUDA share it; fixtures (calibrated_*)
// pin it bit for bit.

/// The range of a master under a held scale s: [-8.5 s, 7.5 s], and its first and last BF16 value.
struct HeldRange {
  float scale;
  float first;
  float last;
};

/// What a master is packed as.
struct HeldValue {
  float value;     ///< a BF16 value of the range; NaN if the master is NaN
  bool projected;  ///< whether the plain cast to BF16 had left the range
};

/// One update of a BF16 master under a held scale.
struct HeldStep {
  uint16_t master;  ///< bf16(master + update), projected into [-8.5 s, 7.5 s]
  bool projected;   ///< as HeldValue's
};

/// True if a held scale can be used: finite, > 0, and 8.5 s is at most the largest finite BF16.
NIBBLE_HOST_DEVICE inline bool held_scale_is_valid(uint16_t scale) {
  constexpr uint16_t kLargest = 0x7df0;  // 1.875 * 2^124
  return scale != 0 && scale <= kLargest;
}

/// The BF16 value nearest to `value` on zero's side of it.
NIBBLE_HOST_DEVICE inline float truncate_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bf16_to_float(static_cast<uint16_t>(bits >> 16));
}

/// Wants a valid scale: then 8.5 s and 7.5 s are exact in float32.
NIBBLE_HOST_DEVICE inline HeldRange held_range(uint16_t scale) {
  const float s = bf16_to_float(scale);
  return {s, truncate_to_bf16(-8.5f * s), truncate_to_bf16(7.5f * s)};
}

/// A float32 master, rounded to BF16 and then projected into the range.
NIBBLE_HOST_DEVICE inline HeldValue hold(float master, const HeldRange& range) {
  const float rounded = round_to_bf16(master);
  if (rounded < range.first) return {range.first, true};
  if (rounded > range.last) return {range.last, true};
  return {rounded, false};
}

NIBBLE_HOST_DEVICE inline HeldStep held_update(uint16_t master, float update, uint16_t scale) {
  const HeldValue held = hold(bf16_to_float(master) + update, held_range(scale));
  return {float_to_bf16(held.value), held.projected};
}

/// BF16 values in numeric order as integers, so that neighbours differ by one: -0.0 and +0.0 are
/// -1 and 0 here, which keeps every bit pattern distinct.
NIBBLE_HOST_DEVICE inline int32_t bf16_to_ordinal(uint16_t bits) {
  return (bits & 0x8000u) != 0 ? -1 - static_cast<int32_t>(bits & 0x7fffu)
                               : static_cast<int32_t>(bits);
}
NIBBLE_HOST_DEVICE inline uint16_t bf16_from_ordinal(int32_t ordinal) {
  return ordinal < 0 ? static_cast<uint16_t>(0x8000u | static_cast<uint32_t>(-1 - ordinal))
                     : static_cast<uint16_t>(ordinal);
}

/// Whether a BF16 master lies in cell(code, scale): it gets that code, and is in the range.
NIBBLE_HOST_DEVICE inline bool held_cell_contains(uint16_t master, int code,
                                                  const HeldRange& range) {
  const float m = bf16_to_float(master);
  return m >= range.first && m <= range.last && quantize_held(m, range.scale) == code;
}

/// The master to start from: `weight` itself if it lies in cell(code, scale), else the BF16
/// value of that cell nearest to it. Wants a valid scale and a finite weight.
NIBBLE_HOST_DEVICE inline uint16_t calibrated_master(uint16_t weight, int code, uint16_t scale) {
  const HeldRange range = held_range(scale);
  if (held_cell_contains(weight, code, range)) return weight;
  // bf16(c * s) always lies in the cell and the cell is an interval: bisect between it and w
  // for the last member on w's side.
  int32_t inside = bf16_to_ordinal(dequantize_code(code, range.scale));
  int32_t outside = bf16_to_ordinal(weight);
  while (outside - inside > 1 || inside - outside > 1) {
    const int32_t middle = inside + (outside - inside) / 2;
    (held_cell_contains(bf16_from_ordinal(middle), code, range) ? inside : outside) = middle;
  }
  const uint16_t nearest = bf16_from_ordinal(inside);
  return nearest == 0x8000u ? uint16_t{0} : nearest;
}

/// Where in the cell of its code a master starts.
enum class CellPlace : uint8_t {
  kNearest,  ///< at the cell's value nearest to the weight: on the edge, if the weight is outside
  kShifted,  ///< as far from the cell's middle as the weight is from that of its own cell
};

/// The master to start from in another cell than the weight's own: the weight moved by whole
/// scales, and then into the cell, if rounding or a clipped weight left it outside. Masters lie in
/// their cells as weights lie in theirs, so an update moves as few codes as it would have (on
/// edges, all of them; docs/decisions/0011). Wants a valid scale and a finite weight.
NIBBLE_HOST_DEVICE inline uint16_t shifted_master(uint16_t weight, int code, uint16_t scale) {
  const float s = bf16_to_float(scale);
  const float w = bf16_to_float(weight);
  const int steps = code - quantize_held(w, s);
  const uint16_t moved = steps == 0 ? weight : float_to_bf16(w + static_cast<float>(steps) * s);
  return calibrated_master(moved, code, scale);
}

NIBBLE_HOST_DEVICE inline uint16_t start_master(uint16_t weight, int code, uint16_t scale,
                                                CellPlace place) {
  return place == CellPlace::kShifted ? shifted_master(weight, code, scale)
                                      : calibrated_master(weight, code, scale);
}

}  // namespace nibble::quant
