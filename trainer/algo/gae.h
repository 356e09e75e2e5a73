#pragma once

#include <cstdint>
#include <span>

namespace nibble {

/// Rewards and a critic's values of samples packed one behind the other.
struct ValuedTokens {
  std::span<const double> reward;         ///< [tokens]
  std::span<const double> value;          ///< [tokens]
  std::span<const uint8_t> mask;          ///< [tokens] non-zero = counts
  std::span<const int64_t> sample_begin;  ///< [samples + 1] from 0 to the number of tokens
};

/// Generalized advantage estimation (Schulman et al., 2016, arXiv:1506.02438, eq. 11-16) over the
/// unmasked tokens of each sample, the value behind the last one being 0:
///   delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lambda A_{t+1}.
/// Masked tokens are passed over without decay and get 0.
///   advantages  [tokens], overwritten
///   returns     [tokens], overwritten: A + V, what the critic is to learn
/// Throws Error{kInvalidArgument} for spans that do not fit together.
void gae(const ValuedTokens& tokens, double gamma, double lambda, std::span<double> advantages,
         std::span<double> returns);

}  // namespace nibble
