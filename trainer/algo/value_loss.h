#pragma once

#include <cstdint>
#include <span>

#include "trainer/algo/aggregation.h"

namespace nibble {

/// A critic's values of one micro-batch, samples packed one behind the other.
struct ValueBatch {
  std::span<const double> value;          ///< [tokens] under the weights being trained
  std::span<const double> old_value;      ///< [tokens] under those that sampled
  std::span<const double> returns;        ///< [tokens] to be learned
  std::span<const uint8_t> mask;          ///< [tokens] non-zero = counts
  std::span<const int64_t> sample_begin;  ///< [samples + 1] from 0 to the number of tokens
};

struct ValueLoss {
  double loss = 0;
  double clip_share = 0;  ///< share of tokens whose value moved by more than clip
};

/// PPO's clipped value loss (Schulman et al., 2017, arXiv:1707.06347, as in the authors' code):
///   max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2), without a factor 1/2,
/// aggregated as the policy loss is (token_weight; seq-mean-token-sum-norm divides by sum_norm 1).
///   totals      denominators of the whole step
///   grad_value  [tokens], overwritten; d loss / d value, 0 at masked tokens
/// Throws Error{kInvalidArgument} for spans that do not fit together.
ValueLoss value_loss(const ValueBatch& batch, double clip, Aggregation aggregation,
                     const LossTotals& totals, std::span<double> grad_value);

}  // namespace nibble
