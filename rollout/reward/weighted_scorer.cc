#include "rollout/reward/weighted_scorer.h"

#include <algorithm>
#include <cmath>

#include "core/base/fail.h"

namespace nibble {
namespace {

Error not_finite(double sum) {
  return {ErrorCode::kInvalidArgument, fmt::format("the weighted scores add up to {}", sum)};
}

}  // namespace

double WeightedScorer::score(std::string_view response, const Json& label) const {
  double sum = 0;
  for (const Part& part : parts_) sum += part.weight * part.scorer->score(response, label);
  if (!std::isfinite(sum)) throw not_finite(sum);
  return sum;
}

size_t WeightedScorer::max_batch() const {
  size_t largest = 1;
  for (const Part& part : parts_) largest = std::max(largest, part.scorer->max_batch());
  return largest;
}

std::vector<RewardOutcome> WeightedScorer::score_all(std::span<const ScoredText> samples) const {
  std::vector<RewardOutcome> sums(samples.size(), 0.0);
  for (const Part& part : parts_) {
    const auto outcomes = part.scorer->score_all(samples);
    NIBBLE_CHECK(outcomes.size() == samples.size(), "{} outcomes of {} samples", outcomes.size(),
                 samples.size());
    for (size_t i = 0; i < samples.size(); ++i) {
      auto* sum = std::get_if<double>(&sums[i]);
      if (sum == nullptr) continue;
      if (const auto* value = std::get_if<double>(&outcomes[i])) {
        *sum += part.weight * *value;
      } else {
        sums[i] = outcomes[i];
      }
    }
  }
  for (RewardOutcome& outcome : sums) {
    const auto* sum = std::get_if<double>(&outcome);
    if (sum != nullptr && !std::isfinite(*sum)) outcome = not_finite(*sum);
  }
  return sums;
}

}  // namespace nibble
