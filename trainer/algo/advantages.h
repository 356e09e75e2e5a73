#pragma once

#include <span>

namespace nibble {

/// How the rewards of one prompt's samples become advantages (`algorithm.advantage`).
enum class AdvantageType {
  kGrpo,  ///< (r - mean) / (std + 1e-6), std unbiased; needs no critic
  kRloo,  ///< r - mean of the other samples' rewards; a lone sample keeps its reward
};

struct AdvantageConfig {
  AdvantageType type = AdvantageType::kGrpo;
  bool normalize_std = true;  ///< false: r - mean (Dr.GRPO); grpo only
};

/// Advantage of every sample of one prompt group; each token of a sample gets this one number.
///   rewards     [n], n >= 1, finite
///   advantages  [n], overwritten
/// Where the standard deviation is 0, and where n = 1, grpo does not divide: the advantages are 0.
/// Throws Error{kInvalidArgument} for an empty group, a reward that is not finite or spans of
/// different sizes.
void group_advantages(std::span<const double> rewards, const AdvantageConfig& config,
                      std::span<double> advantages);

/// Whether a group teaches anything: its unbiased standard deviation exceeds 1e-8 (the dynamic
/// filter `nonzero_std`). False for fewer than two samples. Same errors as group_advantages.
bool has_nonzero_std(std::span<const double> rewards);

}  // namespace nibble
