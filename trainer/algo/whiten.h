#pragma once

#include <cstdint>
#include <span>

namespace nibble {

/// Count and sum of unmasked values. Parts of a batch, and ranks, add theirs.
struct MaskedSums {
  double count = 0;
  double sum = 0;
  double mean() const { return count > 0 ? sum / count : 0; }
};

/// Throws Error{kInvalidArgument} if values and mask differ in size, like the next one.
MaskedSums masked_sums(std::span<const double> values, std::span<const uint8_t> mask);
/// Sum of (value - mean)^2 over unmasked values; parts add theirs.
double masked_squares(std::span<const double> values, std::span<const uint8_t> mask, double mean);

/// Normalization of advantages over a batch, as PPO's (Schulman et al., 2017, arXiv:1707.06347,
/// "advantages are normalized"): (x - mean) / sqrt(variance + 1e-8), variance unbiased and of
/// unmasked values only. Every value changes, a masked one too.
///   squares  masked_squares() of the whole batch about its mean
/// With fewer than two unmasked values the variance is taken as 0.
void whiten(std::span<double> values, const MaskedSums& sums, double squares);

}  // namespace nibble
