#pragma once

#include <cstdint>
#include <span>

namespace nibble {

/// How token losses become one number (`algorithm.aggregation`).
enum class Aggregation {
  kSeqMeanTokenMean,     ///< mean over samples of the mean over a sample's tokens
  kTokenMean,            ///< mean over all tokens (DAPO)
  kSeqMeanTokenSumNorm,  ///< sum over tokens / (samples * sum_norm) (Dr.GRPO)
};

/// Denominators of one optimizer step, summed over its micro-batches and trainer ranks. Samples
/// whose tokens are all masked count too.
struct LossTotals {
  int64_t num_samples = 0;
  int64_t num_tokens = 0;  ///< unmasked
  LossTotals& operator+=(const LossTotals& other);
};

/// The totals of one packed micro-batch.
///   mask          [tokens], non-zero = counts
///   sample_begin  [samples + 1], ascending, from 0 to the number of tokens
/// Throws Error{kInvalidArgument} for bounds that do not cover the tokens in order.
LossTotals count_totals(std::span<const uint8_t> mask, std::span<const int64_t> sample_begin);

/// Weight of each unmasked token of one sample, so that the aggregated value of a whole step is the
/// plain sum over all its parts of weight * token value. 0 where a denominator would be 0.
double token_weight(Aggregation aggregation, const LossTotals& totals, int64_t tokens_in_sample,
                    double sum_norm);

}  // namespace nibble
