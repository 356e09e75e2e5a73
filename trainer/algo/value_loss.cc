#include "trainer/algo/value_loss.h"

#include <algorithm>
#include <cstddef>

#include "core/base/fail.h"

namespace nibble {

ValueLoss value_loss(const ValueBatch& batch, double clip, Aggregation aggregation,
                     const LossTotals& totals, std::span<double> grad_value) {
  count_totals(batch.mask, batch.sample_begin);  // checks the bounds
  const size_t count = batch.mask.size();
  if (batch.value.size() != count || batch.old_value.size() != count ||
      batch.returns.size() != count || grad_value.size() != count) {
    fail(ErrorCode::kInvalidArgument,
         "value loss: {} values, {} old ones, {} returns and room for {} gradients of {} tokens",
         batch.value.size(), batch.old_value.size(), batch.returns.size(), grad_value.size(),
         count);
  }
  std::fill(grad_value.begin(), grad_value.end(), 0.0);
  ValueLoss out;
  for (size_t s = 0; s + 1 < batch.sample_begin.size(); ++s) {
    const auto begin = static_cast<size_t>(batch.sample_begin[s]);
    const auto end = static_cast<size_t>(batch.sample_begin[s + 1]);
    int64_t tokens = 0;
    for (size_t i = begin; i < end; ++i) tokens += batch.mask[i] != 0 ? 1 : 0;
    const double weight = token_weight(aggregation, totals, tokens, 1);
    for (size_t i = begin; i < end; ++i) {
      if (batch.mask[i] == 0) continue;
      const double clipped =
          std::clamp(batch.value[i], batch.old_value[i] - clip, batch.old_value[i] + clip);
      const double error = batch.value[i] - batch.returns[i];
      const double clipped_error = clipped - batch.returns[i];
      const bool is_clipped = clipped_error * clipped_error > error * error;
      const double largest = is_clipped ? clipped_error : error;
      out.loss += weight * largest * largest;
      out.clip_share += clipped != batch.value[i] ? weight : 0;
      // A clamp that is active holds the clipped value still.
      grad_value[i] = is_clipped ? 0 : weight * 2 * error;
    }
  }
  return out;
}

}  // namespace nibble
