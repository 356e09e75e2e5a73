#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "rollout/engine/draft_budget.h"
#include "rollout/engine/draft_policy.h"
#include "rollout/engine/drafter.h"
#include "rollout/engine/draw.h"

namespace nibble {

/// A query on its way through the steps of a drafter that computes its guesses.
struct DraftAsker {
  DraftQuery* query = nullptr;
  double chance = 1.0;  ///< that all its guesses so far come true
  int64_t most = 0;     ///< guesses that are wanted and have a place

  int64_t num_guesses() const { return std::ssize(query->guesses); }
};

/// Guesses of one sample in a round that does not pay, made to learn whether one would.
inline constexpr int64_t kTryGuesses = 4;

/// Adds the guess that was drawn for an asker. Throws Error{kFailedPrecondition} if its probability
/// is not finite, naming the weights that gave it.
void take_guess(DraftAsker& asker, const Draw& draw, int64_t weights_version, DraftPolicy& policy);

/// Tokens that the next step can be expected to bring with all of these askers in it.
template <typename Asker>
double total_gain(const std::vector<Asker>& askers, const DraftBudget& budget) {
  double sum = 0.0;
  for (const Asker& asker : askers) sum += budget.gain(asker.chance);
  return sum;
}

/// Leaves the one that has the least to catch up with.
template <typename Asker>
void keep_nearest(std::vector<Asker>& askers) {
  askers[0] = *std::min_element(askers.begin(), askers.end(), [](const Asker& a, const Asker& b) {
    return a.num_behind() < b.num_behind();
  });
  askers.resize(1, askers[0]);
}

/// In the order of what they have to catch up with, so that a long prompt holds nobody up.
template <typename Asker>
void sort_nearest_first(std::vector<Asker>& askers) {
  std::stable_sort(askers.begin(), askers.end(),
                   [](const Asker& a, const Asker& b) { return a.num_behind() < b.num_behind(); });
}

/// After step `depth` of a round: leaves those that have a guess of it, want more and, if there is
/// a budget, are worth it; of these the likeliest `room`.
template <typename Asker>
void keep_those_that_go_on(std::vector<Asker>& askers, int64_t depth, int64_t room,
                           const DraftBudget* budget) {
  std::erase_if(askers, [&](const Asker& asker) {
    return asker.num_guesses() < depth || asker.num_guesses() == asker.most ||
           (budget != nullptr && !budget->wants(budget->gain(asker.chance)));
  });
  if (std::ssize(askers) <= room) return;
  std::stable_sort(askers.begin(), askers.end(),
                   [](const Asker& a, const Asker& b) { return a.chance > b.chance; });
  askers.erase(askers.begin() + room, askers.end());
}

}  // namespace nibble
