#include "trainer/algo/aggregation.h"

#include <cstddef>

#include "core/base/fail.h"

namespace nibble {

LossTotals& LossTotals::operator+=(const LossTotals& other) {
  num_samples += other.num_samples;
  num_tokens += other.num_tokens;
  return *this;
}

LossTotals count_totals(std::span<const uint8_t> mask, std::span<const int64_t> sample_begin) {
  const auto num_tokens = static_cast<int64_t>(mask.size());
  if (sample_begin.empty() || sample_begin.front() != 0 || sample_begin.back() != num_tokens) {
    fail(ErrorCode::kInvalidArgument, "sample bounds must run from 0 to the {} tokens of the batch",
         num_tokens);
  }
  LossTotals totals{static_cast<int64_t>(sample_begin.size()) - 1, 0};
  for (size_t i = 1; i < sample_begin.size(); ++i) {
    if (sample_begin[i] < sample_begin[i - 1]) {
      fail(ErrorCode::kInvalidArgument, "the bounds of sample {} run backwards", i - 1);
    }
  }
  for (const uint8_t counts : mask) totals.num_tokens += counts != 0 ? 1 : 0;
  return totals;
}

double token_weight(Aggregation aggregation, const LossTotals& totals, int64_t tokens_in_sample,
                    double sum_norm) {
  const auto num_samples = static_cast<double>(totals.num_samples);
  double denominator = 0;
  switch (aggregation) {
    case Aggregation::kSeqMeanTokenMean:
      denominator = num_samples * static_cast<double>(tokens_in_sample);
      break;
    case Aggregation::kTokenMean:
      denominator = static_cast<double>(totals.num_tokens);
      break;
    case Aggregation::kSeqMeanTokenSumNorm:
      denominator = num_samples * sum_norm;
      break;
  }
  return denominator > 0 ? 1 / denominator : 0;
}

}  // namespace nibble
