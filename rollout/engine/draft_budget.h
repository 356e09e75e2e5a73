#pragma once

#include <cstdint>

#include "rollout/engine/draft_policy.h"

namespace nibble {

/// Weighs the steps of a draft model within one round. One more is worth its time if it adds more
/// tokens for each millisecond than the round yields without it: its own time counts, and the time
/// that the engine's step takes longer with the guesses in it. Borrows the policy.
class DraftBudget {
 public:
  ///   num_samples  that the step decodes; each draws a token without guesses
  DraftBudget(const DraftPolicy& policy, int64_t num_samples);

  /// Whether a sample is worth its place in the model's next step.
  ///   chance  that all its guesses so far come true
  bool wants(double chance) const;
  /// Whether the next step is worth its time as a whole; if so, it counts.
  ///   chances  sum of those of the samples in it
  bool takes(double chances, int64_t num_samples);

 private:
  const DraftPolicy& policy_;
  double tokens_;    // that the round yields
  double ms_;        // that it takes
  double check_ms_;  // that a guess takes in the engine's step
};

}  // namespace nibble
