#include "trainer/algo/entropy_bonus.h"

#include <algorithm>
#include <cstddef>

#include "core/base/fail.h"

namespace nibble {

double entropy_bonus(const EntropyBatch& batch, const PolicyLossConfig& config,
                     const LossTotals& totals, std::span<float> grad_entropy) {
  count_totals(batch.mask, batch.sample_begin);  // checks the bounds
  if (batch.entropy.size() != batch.mask.size() || grad_entropy.size() != batch.mask.size()) {
    fail(ErrorCode::kInvalidArgument, "entropy: {} values and room for {} gradients of {} tokens",
         batch.entropy.size(), grad_entropy.size(), batch.mask.size());
  }
  std::fill(grad_entropy.begin(), grad_entropy.end(), 0.0f);
  double term = 0;
  for (size_t s = 0; s + 1 < batch.sample_begin.size(); ++s) {
    const auto begin = static_cast<size_t>(batch.sample_begin[s]);
    const auto end = static_cast<size_t>(batch.sample_begin[s + 1]);
    int64_t tokens = 0;
    for (size_t i = begin; i < end; ++i) tokens += batch.mask[i] != 0 ? 1 : 0;
    const double grad =
        -config.entropy_coef * token_weight(config.aggregation, totals, tokens, config.sum_norm);
    for (size_t i = begin; i < end; ++i) {
      if (batch.mask[i] == 0) continue;
      term += grad * static_cast<double>(batch.entropy[i]);
      grad_entropy[i] = static_cast<float>(grad);
    }
  }
  return term;
}

}  // namespace nibble
