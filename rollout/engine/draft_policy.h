#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "rollout/engine/drafter.h"

namespace nibble {

/// Decides how many guesses a step checks. Learns two things as it goes: what a further token costs
/// in a step, and how often guesses of a kind come true. A guess is worth its cost if
///   q (t / n) > b,  with the time of a step of n tokens t = a + b n
/// and q the chance that it and all before it come true: without it the sample would pay its part
/// of a later step. When steps are bound by arithmetic, a is small and nothing pays; when they are
/// bound by reading weights, b is small and nearly everything does. One thread.
class DraftPolicy {
 public:
  /// Kinds of guesses that are counted together.
  static constexpr int kNumKinds = (DraftToken::kMostEvidence + 1) * 5;
  static int kind_of(const DraftToken& guess);

  /// How many of a sample's guesses to check in a step of `num_samples`.
  int64_t num_worth(std::span<const DraftToken> guesses, int64_t num_samples);

  /// A step took so long.
  void observe_step(int64_t num_tokens, double ms);
  /// A guess came true or not.
  void observe_guess(int kind, bool came_true);

  /// Chance that guesses of a kind come true.
  double chance(int kind) const;
  /// Of a further token in a step: its share of the time of a step of `num_samples` tokens.
  double relative_cost(int64_t num_samples) const;

 private:
  struct Count {
    double yes = 1.5, all = 2.0;  // trying first
  };
  std::array<Count, kNumKinds> counts_;
  // Moments of (tokens, ms), old ones fading.
  double weight_ = 0.0, n_ = 0.0, t_ = 0.0, nn_ = 0.0, nt_ = 0.0;
  uint64_t num_asked_ = 0;
};

}  // namespace nibble
