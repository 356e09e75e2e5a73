#include "rollout/engine/draft_policy.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr double kFadeSteps = 0.98;     // the last fifty steps count
constexpr double kFadeGuesses = 0.995;  // the last two hundred guesses of a kind
// A sample in so many tries a guess that does not pay, to learn whether it would by now.
constexpr uint64_t kTryEvery = 64;
constexpr double kUnknownCost = 0.25;

}  // namespace

int DraftPolicy::kind_of(const DraftToken& guess) {
  const int share = guess.share > 0.95f   ? 4
                    : guess.share > 0.75f ? 3
                    : guess.share > 0.5f  ? 2
                    : guess.share > 0.25f ? 1
                                          : 0;
  return guess.evidence * 5 + share;
}

int64_t DraftPolicy::num_worth(std::span<const DraftToken> guesses, int64_t num_samples) {
  const double cost = relative_cost(num_samples);
  double chance_of_all = 1.0;
  int64_t count = 0;
  for (const DraftToken& guess : guesses) {
    chance_of_all *= chance(kind_of(guess));
    if (chance_of_all <= cost) break;
    ++count;
  }
  if (count == 0 && !guesses.empty() && ++num_asked_ % kTryEvery == 0) return 1;
  return count;
}

void DraftPolicy::observe_step(int64_t num_tokens, double ms) {
  const auto n = static_cast<double>(num_tokens);
  weight_ = kFadeSteps * weight_ + 1.0;
  n_ = kFadeSteps * n_ + n;
  t_ = kFadeSteps * t_ + ms;
  nn_ = kFadeSteps * nn_ + n * n;
  nt_ = kFadeSteps * nt_ + n * ms;
}

double DraftPolicy::relative_cost(int64_t num_samples) const {
  const auto n = static_cast<double>(num_samples);
  const double variance = nn_ - n_ * n_ / std::max(weight_, 1.0);
  // Steps of one size say nothing about the slope.
  if (weight_ < 4.0 || variance < 0.5 * weight_) return kUnknownCost;
  const double slope = std::max(0.0, (nt_ - n_ * t_ / weight_) / variance);
  const double whole = t_ / weight_ + slope * (n - n_ / weight_);
  if (!(whole > 0.0)) return 1.0;
  return std::clamp(slope * n / whole, 0.01, 1.0);
}

void DraftPolicy::observe_guess(int kind, bool came_true) {
  Count& count = counts_[static_cast<size_t>(kind)];
  count.yes = kFadeGuesses * count.yes + (came_true ? 1.0 : 0.0);
  count.all = kFadeGuesses * count.all + 1.0;
}

double DraftPolicy::chance(int kind) const {
  const Count& count = counts_[static_cast<size_t>(kind)];
  return count.yes / count.all;
}

}  // namespace nibble
