#include "rollout/engine/draft_budget.h"

#include <algorithm>

namespace nibble {

DraftBudget::DraftBudget(const DraftPolicy& policy, int64_t num_samples)
    : policy_(policy),
      tokens_(static_cast<double>(std::max<int64_t>(1, num_samples))),
      ms_(policy.step_ms(num_samples)),
      check_ms_(policy.relative_cost(num_samples) * ms_ / tokens_) {}

bool DraftBudget::wants(double chance) const {
  if (!policy_.adapts() || !policy_.knows_times()) return true;
  const double gain = chance * policy_.model_chance();
  return gain * ms_ > tokens_ * (check_ms_ + policy_.draft_slope_ms());
}

bool DraftBudget::takes(double chances, int64_t num_samples) {
  if (!policy_.adapts() || !policy_.knows_times()) return true;
  const double gain = chances * policy_.model_chance();
  const double cost = policy_.draft_ms(num_samples) + check_ms_ * static_cast<double>(num_samples);
  if (gain * ms_ <= tokens_ * cost) return false;
  tokens_ += gain;
  ms_ += cost;
  return true;
}

}  // namespace nibble
