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

  /// Tokens that the model's next guess brings to a sample whose guesses so far all come true with
  /// this chance.
  double gain(double chance) const { return policy_.model_gain(chance, relative_cost_); }
  /// Whether a sample with such a gain is worth its place in the model's next step.
  bool wants(double gain) const;
  /// Whether the next step is worth its time as a whole; if so, it counts.
  ///   gains  sum of those of the samples in it
  bool takes(double gains, int64_t num_samples);

 private:
  const DraftPolicy& policy_;
  const double relative_cost_;
  double tokens_;          // that the round yields
  double ms_;              // that it takes
  const double check_ms_;  // that a guess takes in the engine's step
};

}  // namespace nibble
