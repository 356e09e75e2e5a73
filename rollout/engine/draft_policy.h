#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "rollout/engine/drafter.h"
#include "rollout/engine/step_times.h"

namespace nibble {

/// Decides how many guesses a step checks. Learns three things as it goes: what a further token
/// costs in a step, how often guesses of a kind come true, and what a draft model's steps cost. A
/// guess is worth its cost if
///   q (t / n) > b,  with the time of a step of n tokens t = a + b n
/// and q the chance that it and all before it come true: without it the sample would pay its part
/// of a later step. When steps are bound by arithmetic, a is small and nothing pays; when they are
/// bound by reading weights, b is small and nearly everything does. One thread.
class DraftPolicy {
 public:
  /// Kinds of guesses that are counted together.
  static constexpr int kNumShares = 5;
  static constexpr int kNumKinds = (DraftToken::kFromModel + 1) * kNumShares;
  static int kind_of(const DraftToken& guess);

  /// `adapts` false: everything is worth it.
  explicit DraftPolicy(bool adapts = true) : adapts_(adapts) {}
  bool adapts() const { return adapts_; }

  /// How many of a sample's guesses to check in a step of `num_samples`.
  int64_t num_worth(std::span<const DraftToken> guesses, int64_t num_samples);

  /// A step took so long.
  void observe_step(int64_t num_tokens, double ms) { step_times_.observe(num_tokens, ms); }
  /// A guess came true or not.
  void observe_guess(int kind, bool came_true);
  /// The draft model made a guess of this kind, whether it will be checked or not.
  void observe_drafted(int kind);
  /// A step of the draft model: tokens that it computed, guesses that came of it. `is_try`: of one
  /// that was made although none pays, which says nothing about how much there is to catch up with.
  void observe_draft(int64_t num_tokens, int64_t num_guesses, double ms, bool is_try);

  /// Chance that guesses of a kind come true.
  double chance(int kind) const { return counts_[static_cast<size_t>(kind)].share(); }
  /// Chance that the draft model's next guess comes true, whatever its kind.
  double model_chance() const { return model_gain(1.0, 0.0); }
  /// Tokens that it can be expected to bring behind guesses that come true with `chance`, if one is
  /// checked only where the chance of all is above `cost`.
  double model_gain(double chance, double cost) const;
  /// Of a further token in a step: its share of the time of a step of `num_samples` tokens.
  double relative_cost(int64_t num_samples) const;

  /// Whether DraftBudget has what it needs; until then everything is worth trying.
  bool knows_times() const { return step_times_.is_known() && draft_times_.is_known(); }
  double step_ms(int64_t num_tokens) const { return step_times_.at_ms(num_tokens); }
  /// Of a step of the draft model that makes so many guesses, with its part of what the model has
  /// to catch up with: prompts, and tokens that were not guessed.
  double draft_ms(int64_t num_guesses) const;
  /// Of a further guess in it.
  double draft_slope_ms() const { return draft_times_.slope_ms() * overhead(); }
  /// Whether the model guesses now although that does not pay, to learn whether it would: the less
  /// often the longer it has not.
  bool tries_model();

 private:
  static constexpr int kTryEvery = 64;
  static constexpr int kTrySeldom = 1024;
  struct Count {
    double yes = 1.5, all = 2.0;  // trying first
    void observe(bool came_true);
    double share() const { return yes / all; }
  };
  double overhead() const { return draft_ms_ / guessing_ms_; }

  const bool adapts_;
  std::array<Count, kNumKinds> counts_;
  std::array<double, kNumShares> drafted_ = {1, 1, 1, 1, 1};  // of each kind, old ones fading
  StepTimes step_times_;
  StepTimes draft_times_;  // of steps with little to catch up with
  // Of the draft model's steps, old ones fading: what they took, and what their guesses would have
  // without anything to catch up with.
  double draft_ms_ = 1.0, guessing_ms_ = 1.0;
  uint64_t num_asked_ = 0;
  int num_refused_ = 0;        // rounds of the draft model, since the last
  int try_after_ = kTryEvery;  // so many
};

}  // namespace nibble
