#include "core/quant/held_scale.h"

#include <cmath>

#include "core/quant/bf16.h"
#include "core/quant/group_codec.h"

namespace nibble::quant {
namespace {

// BF16 values in numeric order as integers, so that neighbours differ by one: -0.0 and +0.0 are
// -1 and 0 here, which keeps every bit pattern distinct.
int32_t to_ordinal(uint16_t bits) {
  return (bits & 0x8000u) != 0 ? -1 - static_cast<int32_t>(bits & 0x7fffu)
                               : static_cast<int32_t>(bits);
}

uint16_t from_ordinal(int32_t ordinal) {
  return ordinal < 0 ? static_cast<uint16_t>(0x8000u | static_cast<uint32_t>(-1 - ordinal))
                     : static_cast<uint16_t>(ordinal);
}

bool in_cell(uint16_t value, int code, float scale) {
  const float m = bf16_to_float(value);
  return quantize_held(m, scale) == code && m >= -8.5f * scale && m <= 7.5f * scale;
}

}  // namespace

bool held_scale_is_valid(uint16_t scale) {
  if (!bf16_is_finite(scale) || (scale & 0x8000u) != 0 || scale == 0) return false;
  constexpr uint16_t kLargestFinite = 0x7f7f;
  return 8.5 * static_cast<double>(bf16_to_float(scale)) <=
         static_cast<double>(bf16_to_float(kLargestFinite));
}

uint16_t calibrated_master(uint16_t weight, int code, uint16_t scale_bits) {
  const float scale = bf16_to_float(scale_bits);
  if (in_cell(weight, code, scale)) return weight;
  // bf16(c * s) always lies in the cell and the cell is an interval: bisect between it and w
  // for the last member on w's side.
  int32_t inside = to_ordinal(dequantize_code(code, scale));
  int32_t outside = to_ordinal(weight);
  while (std::abs(outside - inside) > 1) {
    const int32_t middle = inside + (outside - inside) / 2;
    (in_cell(from_ordinal(middle), code, scale) ? inside : outside) = middle;
  }
  const uint16_t nearest = from_ordinal(inside);
  return nearest == 0x8000u ? uint16_t{0} : nearest;
}

HeldStep held_update(uint16_t master, float update, uint16_t scale_bits) {
  const float scale = bf16_to_float(scale_bits);
  const float low = -8.5f * scale;
  const float high = 7.5f * scale;
  const uint16_t moved = float_to_bf16(bf16_to_float(master) + update);
  const float x = bf16_to_float(moved);
  if (x >= low && x <= high) return {moved, false};
  // The BF16 value of the range nearest to x: round the bound, then step inside if it left.
  const float bound = x < low ? low : high;
  int32_t ordinal = to_ordinal(float_to_bf16(bound));
  while (bf16_to_float(from_ordinal(ordinal)) > high) --ordinal;
  while (bf16_to_float(from_ordinal(ordinal)) < low) ++ordinal;
  return {from_ordinal(ordinal), true};
}

}  // namespace nibble::quant
