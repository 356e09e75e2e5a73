#include "rollout/engine/lookup_drafter.h"

#include <algorithm>

#include "core/base/fail.h"
#include "rollout/engine/request.h"

namespace nibble {

void LookupDrafter::begin(const GenerateRequest& request, std::span<const int32_t> prompt,
                          std::span<const int32_t> drawn) {
  std::vector<int32_t> key(prompt.begin(), prompt.end());
  auto found = entries_.find(key);
  if (found == entries_.end()) {
    found = entries_.emplace(std::move(key), std::make_unique<Entry>(prompt)).first;
    found->second->use = uses_.insert(uses_.end(), &found->first);
    num_tokens_ += found->second->corpus.num_tokens();
  }
  Entry& entry = *found->second;
  uses_.splice(uses_.end(), uses_, entry.use);
  num_tokens_ -= entry.corpus.num_tokens();
  const int32_t sample = entry.corpus.begin();
  for (const int32_t token : drawn) entry.corpus.extend(sample, token);
  num_tokens_ += entry.corpus.num_tokens();
  live_.emplace(request.id, Live{&entry, sample});
  drop_oldest();
}

void LookupDrafter::extend(uint64_t id, int32_t token) {
  const Live& live = live_.at(id);
  live.entry->corpus.extend(live.sample, token);
  ++num_tokens_;
}

void LookupDrafter::end(uint64_t id, bool is_whole) {
  const auto found = live_.find(id);
  NIBBLE_CHECK(found != live_.end(), "request {} ends twice", id);
  PromptCorpus& corpus = found->second.entry->corpus;
  num_tokens_ -= corpus.num_tokens();
  if (is_whole) {
    corpus.end(found->second.sample);
  } else {
    corpus.drop(found->second.sample);
  }
  corpus.trim(limits_.samples_per_prompt);
  num_tokens_ += corpus.num_tokens();
  live_.erase(found);
  drop_oldest();
}

void LookupDrafter::propose(const DraftRound& round, DraftPolicy& /*policy*/) {
  for (DraftQuery& query : round.queries) {
    if (query.most == 0 || !query.guesses.empty()) continue;
    const Live& live = live_.at(query.id);
    live.entry->corpus.propose(live.sample, query.most, query.guesses);
  }
}

// Prompts with running samples stay whatever they take.
void LookupDrafter::drop_oldest() {
  for (auto use = uses_.begin(); use != uses_.end() && num_tokens_ > limits_.max_tokens;) {
    const auto entry = entries_.find(**use);
    if (entry->second->corpus.num_live() > 0) {
      ++use;
      continue;
    }
    num_tokens_ -= entry->second->corpus.num_tokens();
    use = uses_.erase(use);
    entries_.erase(entry);
  }
}

int64_t LookupDrafter::num_bytes() const {
  // A token, where it stood before, its share of the index, and what vectors and maps hold in
  // reserve: as measured.
  constexpr int64_t kBytesPerToken = 80;
  return num_tokens_ * kBytesPerToken;
}

}  // namespace nibble
