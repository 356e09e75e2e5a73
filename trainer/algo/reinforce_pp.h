#pragma once

#include <cstdint>
#include <span>

namespace nibble {

/// Rewards of samples packed one behind the other.
struct TokenRewards {
  std::span<const double> score;          ///< [samples] of the last unmasked token
  std::span<const double> kl;             ///< [tokens] to the reference; empty: 0
  std::span<const uint8_t> mask;          ///< [tokens] non-zero = counts
  std::span<const int64_t> sample_begin;  ///< [samples + 1] from 0 to the number of tokens
};

/// REINFORCE++ (Hu, 2025, arXiv:2501.03262): discounted returns of token-level rewards,
///   r_t = -kl_coef * kl_t, and + score at the last unmasked token;  G_t = r_t + gamma * G_{t+1}.
/// Masked tokens bring their KL too. A sample without unmasked tokens never gets its score.
///   returns  [tokens], overwritten; to be whitened over the batch
/// Throws Error{kInvalidArgument} for spans that do not fit together.
void reinforce_pp_returns(const TokenRewards& rewards, double kl_coef, double gamma,
                          std::span<double> returns);

/// REINFORCE++-baseline (the same source): A_t = score - kl_coef * kl_t, where the score is the
/// reward less the mean of its prompt's group. Otherwise as reinforce_pp_returns().
void reinforce_pp_baseline(const TokenRewards& rewards, double kl_coef,
                           std::span<double> advantages);

}  // namespace nibble
