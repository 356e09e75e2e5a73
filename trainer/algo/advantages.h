#pragma once

#include <span>

namespace nibble {

/// How the rewards of one prompt's samples become advantages (`algorithm.advantage`).
enum class AdvantageType {
  kGrpo,                 ///< (r - mean) / (std + 1e-6), std unbiased; needs no critic
  kRloo,                 ///< r - mean of the other samples' rewards; a lone sample keeps its reward
  kReinforcePp,          ///< discounted token rewards, normalized over the batch (reinforce_pp.h)
  kReinforcePpBaseline,  ///< r - mean, less a KL per token, normalized over the batch
  kGae,                  ///< of token rewards and a critic's values (gae.h), normalized likewise
  kOpd,                  ///< of a teacher's log-probabilities (distillation.h), not of rewards
};

struct AdvantageConfig {
  AdvantageType type = AdvantageType::kGrpo;
  bool normalize_std = true;  ///< false: r - mean (Dr.GRPO); grpo only
  double gamma = 1.0;         ///< discount of one token; reinforce_pp and gae
  double lambda = 1.0;        ///< gae only: 1 = returns less values, 0 = one step's error
  double kl_reward_coef = 0;  ///< weight of the KL in the token rewards of the token-level types
};

/// Whether advantages differ among a sample's tokens and are normalized over the batch.
bool is_token_level(AdvantageType type);

/// Advantage of every sample of one prompt group; each token of a sample gets this one number.
/// Sources: grpo, Shao et al., 2024, arXiv:2402.03300 (normalize_std: false: Liu et al., 2025,
/// arXiv:2503.20783); rloo, Ahmadian et al., 2024, arXiv:2402.14740.
/// Of the token-level types it is the sample's score: the reward (reinforce_pp, gae), or the reward
/// less the group's mean (reinforce_pp_baseline). Of opd it is 0.
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
