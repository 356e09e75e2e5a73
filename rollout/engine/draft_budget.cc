#include "rollout/engine/draft_budget.h"

#include <algorithm>

namespace nibble {

DraftBudget::DraftBudget(const DraftPolicy& policy, int64_t num_samples)
    : policy_(policy),
      relative_cost_(policy.relative_cost(num_samples)),
      tokens_(static_cast<double>(std::max<int64_t>(1, num_samples))),
      ms_(policy.step_ms(num_samples)),
      check_ms_(relative_cost_ * ms_ / tokens_) {}

bool DraftBudget::wants(double gain) const {
  if (!policy_.adapts() || !policy_.knows_times()) return true;
  return gain * ms_ > tokens_ * (check_ms_ + policy_.draft_slope_ms());
}

bool DraftBudget::takes(double gains, int64_t num_samples) {
  if (!policy_.adapts() || !policy_.knows_times()) return true;
  const double cost = policy_.draft_ms(num_samples) + check_ms_ * static_cast<double>(num_samples);
  if (gains * ms_ <= tokens_ * cost) return false;
  tokens_ += gains;
  ms_ += cost;
  return true;
}

}  // namespace nibble
