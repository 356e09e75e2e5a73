#pragma once

#include <cstdint>
#include <span>

namespace nibble::quant {

/// Arithmetic of `qat.start: calibrated`: masters that stay inside the rounding cells of a
/// calibrated checkpoint while its scales are held. All values BF16 bits unless float.

/// True if a held scale can be used: finite, > 0, and 8.5 s is a finite BF16.
bool held_scale_is_valid(uint16_t scale);

/// The master to start from: `weight` itself if it lies in cell(code, scale), else the BF16
/// value of that cell nearest to it. Wants a valid scale and a finite weight.
uint16_t calibrated_master(uint16_t weight, int code, uint16_t scale);

/// One update of a master under a held scale.
struct HeldStep {
  uint16_t master;  ///< bf16(master + update), projected into [-8.5 s, 7.5 s]
  bool projected;   ///< whether the plain cast had left that range
};
HeldStep held_update(uint16_t master, float update, uint16_t scale);

}  // namespace nibble::quant
