#pragma once

#include <cstdint>
#include <span>

#include "trainer/algo/policy_loss.h"

namespace nibble {

/// Entropies of one micro-batch's tokens, samples packed one behind the other.
struct EntropyBatch {
  std::span<const float> entropy;         ///< [tokens] nats, of the distribution each came from
  std::span<const uint8_t> mask;          ///< [tokens] non-zero = counts
  std::span<const int64_t> sample_begin;  ///< [samples + 1] from 0 to the number of tokens
};

/// The entropy term of the loss, -entropy_coef * (entropy, aggregated as the policy loss is)
/// (Williams and Peng, 1991; Mnih et al., 2016, arXiv:1602.01783).
///   totals        denominators of the whole step
///   grad_entropy  [tokens], overwritten; d term / d entropy, 0 at masked tokens
/// Returns the term. Throws Error{kInvalidArgument} for spans that do not fit together.
double entropy_bonus(const EntropyBatch& batch, const PolicyLossConfig& config,
                     const LossTotals& totals, std::span<float> grad_entropy);

}  // namespace nibble
