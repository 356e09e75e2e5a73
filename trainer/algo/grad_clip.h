#pragma once

namespace nibble {

/// Factor on all gradients that brings their global norm down to `max_norm` (> 0):
/// min(1, max_norm / (norm + 1e-6)). NaN for a norm that is NaN: the caller checks the norm.
inline double grad_clip_coefficient(double norm, double max_norm) {
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient > 1 ? 1 : coefficient;
}

}  // namespace nibble
