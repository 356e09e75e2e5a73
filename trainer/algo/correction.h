#pragma once

#include <optional>
#include <span>
#include <vector>

namespace nibble {

/// What multiplies the token loss for the gap between trainer and rollout
/// (`algorithm.correction`); w = exp(old - rollout).
enum class OffPolicyCorrection {
  kNone,
  kTis,     ///< w clamped to [low, high] (truncated importance sampling, Yao et al., 2025)
  kIcepop,  ///< w where it lies inside these bounds, else 0 (IcePop, Ling team, 2025)
  kMis,     ///< masked importance sampling: mode, level, rejection and veto below
};

/// What mis does with a ratio outside of its bounds.
enum class MisMode {
  kTruncate,  ///< at most `high`
  kMask,      ///< the ratio as it is; tokens outside of [low, high] are left out of the loss
  kClip,      ///< clamped to [low, high]
};

/// Whose ratio a token has.
enum class MisLevel {
  kToken,
  kSequence,   ///< the product over its sample's tokens
  kGeometric,  ///< their geometric mean
};

struct CorrectionConfig {
  OffPolicyCorrection kind = OffPolicyCorrection::kNone;
  double low = 0;
  double high = 2;
  MisMode mode = MisMode::kTruncate;  ///< this and what follows: mis only
  MisLevel level = MisLevel::kToken;
  double veto = 1e-4;  ///< a sample with a token whose ratio is below is left out; 0 = off
  std::optional<MisLevel> reject_level;  ///< leaves out tokens by the ratio of this level too
  std::optional<double> reject_low;      ///< where it is outside of these; `low`
  std::optional<double> reject_high;     ///< `high`
};

/// Throws Error{kInvalidArgument} naming the first value out of its range.
void validate(const CorrectionConfig& config);

/// The correction of one token.
struct TokenCorrection {
  double weight = 1;
  bool is_cut = false;       ///< bounds changed the weight
  bool is_rejected = false;  ///< left out of the loss, by mask mode or rejection
  bool is_vetoed = false;    ///< left out with its whole sample
  /// Factor of the token's loss. The denominators of the loss do not follow what is left out.
  double factor() const { return is_rejected || is_vetoed ? 0 : weight; }
};

/// The corrections of one sample's unmasked tokens. No gradient flows through them.
///   log_ratio  [tokens] old - rollout; of mis clamped to +-20 (a sum of them too)
/// Returns one per token. Source of mis: Miles' mis.py, compute_mis_weights.
std::vector<TokenCorrection> correct_sample(const CorrectionConfig& config,
                                            std::span<const double> log_ratio);

/// Factor that brings the mean weight of a batch to 1 (mis' batch normalization): over tokens at
/// the level of tokens, else over samples. Tokens that are left out count. A trainer does not use
/// it: it needs the weights of all ranks before the first loss.
///   samples  what correct_sample() gave for each; those without tokens do not count
double mis_batch_factor(std::span<const std::vector<TokenCorrection>> samples, MisLevel level);

}  // namespace nibble
