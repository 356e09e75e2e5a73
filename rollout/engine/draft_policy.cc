#include "rollout/engine/draft_policy.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr double kFadeGuesses = 0.995;  // the last two hundred guesses of a kind
constexpr double kFadeDrafts = 0.99;    // the last hundred steps of the draft model
constexpr double kUnknownCost = 0.25;
constexpr int kFirstOfModel = DraftToken::kFromModel * DraftPolicy::kNumShares;

}  // namespace

int DraftPolicy::kind_of(const DraftToken& guess) {
  const int share = guess.share > 0.95f   ? 4
                    : guess.share > 0.75f ? 3
                    : guess.share > 0.5f  ? 2
                    : guess.share > 0.25f ? 1
                                          : 0;
  return guess.evidence * kNumShares + share;
}

int64_t DraftPolicy::num_worth(std::span<const DraftToken> guesses, int64_t num_samples) {
  if (!adapts_) return std::ssize(guesses);
  const double cost = relative_cost(num_samples);
  double chance_of_all = 1.0;
  int64_t count = 0;
  for (const DraftToken& guess : guesses) {
    chance_of_all *= chance(kind_of(guess));
    if (chance_of_all <= cost) break;
    ++count;
  }
  // A sample in so many tries a guess that does not pay, to learn whether it would by now.
  if (count == 0 && !guesses.empty() && ++num_asked_ % kTryEvery == 0) return 1;
  return count;
}

double DraftPolicy::relative_cost(int64_t num_samples) const {
  if (!step_times_.has_slope()) return kUnknownCost;
  const double slope = step_times_.slope_ms();
  const double whole = step_times_.at_ms(num_samples);
  if (!(whole > 0.0)) return 1.0;
  return std::clamp(slope * static_cast<double>(num_samples) / whole, 0.01, 1.0);
}

void DraftPolicy::Count::observe(bool came_true) {
  yes = kFadeGuesses * yes + (came_true ? 1.0 : 0.0);
  all = kFadeGuesses * all + 1.0;
}

void DraftPolicy::observe_guess(int kind, bool came_true) {
  counts_[static_cast<size_t>(kind)].observe(came_true);
}

void DraftPolicy::observe_drafted(int kind) {
  for (double& count : drafted_) count *= kFadeGuesses;
  drafted_[static_cast<size_t>(kind - kFirstOfModel)] += 1.0;
}

double DraftPolicy::model_gain(double chance, double cost) const {
  double gain = 0.0, all = 0.0;
  for (size_t share = 0; share < drafted_.size(); ++share) {
    const double of_all = chance * counts_[kFirstOfModel + share].share();
    if (of_all > cost) gain += drafted_[share] * of_all;
    all += drafted_[share];
  }
  return gain / all;
}

void DraftPolicy::observe_draft(int64_t num_tokens, int64_t num_guesses, double ms, bool is_try) {
  if (!is_try) try_after_ = kTryEvery;
  if (num_tokens <= 2 * num_guesses) draft_times_.observe(num_tokens, ms);
  if (!draft_times_.is_known()) return;
  const double guessing_ms = draft_times_.at_ms(num_guesses);
  draft_ms_ = kFadeDrafts * draft_ms_ + (is_try ? guessing_ms : ms);
  guessing_ms_ = kFadeDrafts * guessing_ms_ + guessing_ms;
}

bool DraftPolicy::tries_model() {
  if (++num_refused_ < try_after_) return false;
  num_refused_ = 0;
  try_after_ = std::min(2 * try_after_, kTrySeldom);
  return true;
}

double DraftPolicy::draft_ms(int64_t num_guesses) const {
  return draft_times_.at_ms(num_guesses) * overhead();
}

}  // namespace nibble
