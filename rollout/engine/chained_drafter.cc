#include "rollout/engine/chained_drafter.h"

#include <utility>

#include "rollout/engine/draft_policy.h"

namespace nibble {

void ChainedDrafter::begin(const GenerateRequest& request, std::span<const int32_t> prompt,
                           std::span<const int32_t> drawn) {
  first_->begin(request, prompt, drawn);
  model_->begin(request, prompt, drawn);
}

void ChainedDrafter::extend(uint64_t id, int32_t token) {
  first_->extend(id, token);
  model_->extend(id, token);
}

void ChainedDrafter::end(uint64_t id, bool is_whole) {
  first_->end(id, is_whole);
  model_->end(id, is_whole);
}

void ChainedDrafter::propose(const DraftRound& round, DraftPolicy& policy) {
  first_->propose(round, policy);
  doubtful_.resize(std::max(doubtful_.size(), round.queries.size()));
  int64_t room = round.room;
  for (size_t i = 0; i < round.queries.size(); ++i) {
    std::vector<DraftToken>& guesses = round.queries[i].guesses;
    doubtful_[i].clear();
    if (guesses.empty()) continue;
    if (policy.chance(DraftPolicy::kind_of(guesses[0])) < policy.model_chance()) {
      std::swap(doubtful_[i], guesses);
    } else {
      room -= std::ssize(guesses);
    }
  }
  if (room > 0) model_->propose({round.queries, round.num_samples, room}, policy);
  for (size_t i = 0; i < round.queries.size(); ++i) {
    if (round.queries[i].guesses.empty()) std::swap(doubtful_[i], round.queries[i].guesses);
  }
}

}  // namespace nibble
