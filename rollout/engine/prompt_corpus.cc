#include "rollout/engine/prompt_corpus.h"

#include <algorithm>
#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

// Longer agreement than this says no more.
constexpr int kMostAgreement = 24;
constexpr int kMostVoters = 48;
// A response begins behind so many tokens of the prompt.
constexpr size_t kHeadTokens = 8;

int evidence_of(int agreement) {
  return agreement >= 12 ? 3 : agreement >= 6 ? 2 : agreement >= 3 ? 1 : 0;
}

}  // namespace

PromptCorpus::PromptCorpus(std::span<const int32_t> prompt)
    : head_(prompt.end() - static_cast<ptrdiff_t>(std::min(kHeadTokens, prompt.size())),
            prompt.end()) {
  samples_.emplace_back();
  for (const int32_t token : prompt) push(0, token);
}

uint64_t PromptCorpus::pair_key(const Sample& sample, size_t last) {
  return static_cast<uint64_t>(static_cast<uint32_t>(sample.tokens[last - 1])) << 32 |
         static_cast<uint32_t>(sample.tokens[last]);
}

void PromptCorpus::push(int32_t at, int32_t token) {
  Sample& sample = samples_[static_cast<size_t>(at)];
  sample.tokens.push_back(token);
  sample.before.emplace_back();
  ++num_tokens_;
  if (sample.tokens.size() < 2) return;
  const size_t last = sample.tokens.size() - 1;
  Place& place = last_place_[pair_key(sample, last)];
  sample.before.back() = std::exchange(place, {at, static_cast<int32_t>(last)});
}

int32_t PromptCorpus::begin() {
  const auto place = static_cast<int32_t>(samples_.size());
  Sample& sample = samples_.emplace_back();
  sample.is_live = true;
  sample.number = next_number_++;
  place_of_.emplace(sample.number, place);
  ++num_live_;
  for (const int32_t token : head_) push(place, token);
  return samples_.back().number;
}

void PromptCorpus::extend(int32_t sample, int32_t token) { push(place_of_.at(sample), token); }

void PromptCorpus::end(int32_t sample) {
  live(sample).is_live = false;
  place_of_.erase(sample);
  --num_live_;
}

void PromptCorpus::drop(int32_t sample) {
  Sample& dropped = live(sample);
  num_tokens_ -= std::ssize(dropped.tokens);
  // Until the next trim() what stood before it is found through it; it is not found itself.
  dropped.tokens = {};
  end(sample);
}

int PromptCorpus::agreement(const Sample& one, size_t one_last, const Sample& other,
                            size_t other_last) const {
  int length = 0;
  while (length < kMostAgreement && one.tokens[one_last] == other.tokens[other_last]) {
    ++length;
    if (one_last == 0 || other_last == 0) break;
    --one_last;
    --other_last;
  }
  return length;
}

std::vector<PromptCorpus::Voter> PromptCorpus::find_voters(const Sample& own) const {
  std::vector<Voter> voters;
  Place place = own.before.back();
  for (int steps = 0; place.sample >= 0 && steps < 4 * kMostVoters; ++steps) {
    const Sample& sample = samples_[static_cast<size_t>(place.sample)];
    const auto last = static_cast<size_t>(place.last);
    if (last < sample.tokens.size()) {  // else it was dropped
      const int length = agreement(own, own.tokens.size() - 1, sample, last);
      if (last + 1 < sample.tokens.size() && length >= 2) {
        voters.push_back({&sample, last + 1, static_cast<double>(length) * length, length});
        if (std::ssize(voters) == kMostVoters) break;
      }
    }
    place = sample.before[last];
  }
  return voters;
}

void PromptCorpus::propose(int32_t sample, int64_t most, std::vector<DraftToken>& out) const {
  out.clear();
  const Sample& own = samples_[static_cast<size_t>(place_of_.at(sample))];
  if (own.tokens.size() < 2) return;
  std::vector<Voter> voters = find_voters(own);
  std::vector<std::pair<int32_t, double>> votes;
  while (!voters.empty() && std::ssize(out) < most) {
    votes.clear();
    double total = 0.0;
    for (const Voter& voter : voters) {
      const int32_t token = voter.sample->tokens[voter.next];
      const auto found = std::find_if(votes.begin(), votes.end(),
                                      [token](const auto& vote) { return vote.first == token; });
      if (found == votes.end()) {
        votes.emplace_back(token, voter.weight);
      } else {
        found->second += voter.weight;
      }
      total += voter.weight;
    }
    const auto [token, weight] =
        *std::max_element(votes.begin(), votes.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; });
    int longest = 0;
    std::erase_if(voters, [&, chosen = token](Voter& voter) {
      if (voter.sample->tokens[voter.next] != chosen) return true;
      longest = std::max(longest, voter.length + static_cast<int>(out.size()));
      return ++voter.next == voter.sample->tokens.size();
    });
    out.push_back({token, static_cast<float>(weight / total), evidence_of(longest)});
  }
}

void PromptCorpus::trim(int64_t most) {
  // Not each time: indexing what stays takes as long as all of it.
  if (std::ssize(samples_) - 1 - num_live_ <= 2 * most) return;
  std::vector<Sample> newest;
  int64_t finished = 0;
  for (size_t i = samples_.size() - 1; i > 0; --i) {
    Sample& sample = samples_[i];
    if (!sample.is_live && (sample.tokens.empty() || ++finished > most)) continue;
    newest.push_back(std::move(sample));
  }
  samples_.resize(1);
  for (auto sample = newest.rbegin(); sample != newest.rend(); ++sample) {
    if (sample->is_live) place_of_[sample->number] = static_cast<int32_t>(samples_.size());
    samples_.push_back(std::move(*sample));
  }
  index_again();
}

void PromptCorpus::index_again() {
  last_place_.clear();
  num_tokens_ = 0;
  for (size_t i = 0; i < samples_.size(); ++i) {
    const std::vector<int32_t> tokens = std::move(samples_[i].tokens);
    samples_[i].tokens.clear();
    samples_[i].before.clear();
    for (const int32_t token : tokens) push(static_cast<int32_t>(i), token);
  }
}

}  // namespace nibble
