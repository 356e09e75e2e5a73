#include "rollout/engine/draft_samples.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {

void DraftedSample::keep_what_was_drawn() {
  const std::vector<int32_t>& drawn = sequence.completion.tokens;
  const auto known = static_cast<ptrdiff_t>(sequence.computed);  // to agree
  const auto end =
      std::mismatch(written.begin() + known, written.end(), drawn.begin() + known, drawn.end())
          .first;
  written.erase(end, written.end());
  if (!written.empty() && written.size() == drawn.size()) written.pop_back();
  sequence.computed = std::ssize(written);
}

int64_t DraftedSample::num_behind() const {
  const Group& group = *sequence.group;
  return group.prompt_tokens() - group.computed + num_drawn() - std::ssize(written);
}

bool DraftSamples::ByPrompt::less(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

DraftSamples::DraftSamples(const EngineConfig& config)
    : max_positions_(config.max_positions),
      kv_(config, 0),
      by_lane_(static_cast<size_t>(config.max_running)) {}

void DraftSamples::begin(const GenerateRequest& request, std::span<const int32_t> prompt,
                         std::span<const int32_t> drawn) {
  auto found = groups_.find(prompt);
  if (found == groups_.end()) {
    auto group = std::make_shared<Group>();
    group->prompt.assign(prompt.begin(), prompt.end());
    num_tokens_ += group->prompt_tokens();
    found = groups_.insert(std::move(group)).first;
  }
  auto sample = std::make_unique<DraftedSample>();
  Sequence& sequence = sample->sequence;
  sequence.request.id = request.id;
  sequence.request.prompt_id = request.prompt_id;
  sequence.request.sample_index = request.sample_index;
  sequence.request.sampling = request.sampling;
  sequence.request.seed = request.seed;
  sequence.completion.tokens.assign(drawn.begin(), drawn.end());
  sequence.group = *found;
  sequence.group->members.push_back(&sequence);
  num_tokens_ += sample->num_drawn();
  samples_.emplace(request.id, std::move(sample));
}

void DraftSamples::extend(uint64_t id, int32_t token) {
  at(id).sequence.completion.tokens.push_back(token);
  ++num_tokens_;
}

void DraftSamples::end(uint64_t id, bool is_whole) {
  const auto found = samples_.find(id);
  NIBBLE_CHECK(found != samples_.end(), "request {} ends twice", id);
  DraftedSample& sample = *found->second;
  const std::shared_ptr<Group> group = sample.sequence.group;
  num_tokens_ -= sample.num_drawn();
  if (sample.sequence.lane >= 0) {
    // A conversation goes on with what was said.
    if (is_whole && group->members.size() == 1) {
      sample.keep_what_was_drawn();
      kv_.share_response(sample.sequence);
    }
    displace(sample);
  }
  std::erase(group->members, &sample.sequence);
  if (group->members.empty()) {
    num_tokens_ -= group->prompt_tokens();
    groups_.erase(group);
  }
  samples_.erase(found);
}

void DraftSamples::begin_round(std::span<DraftedSample* const> asking) {
  ++round_;
  for (DraftedSample* sample : asking) sample->asked_in = round_;
}

bool DraftSamples::has_room(const DraftedSample& sample) const {
  const Group& group = *sample.sequence.group;
  const int64_t needed = (group.is_started() ? 0 : kv_.blocks_to_start(group)) +
                         kv_.blocks_for_response(group, sample.num_drawn());
  return num_placed_ < std::ssize(by_lane_) && needed <= kv_.num_available();
}

// Takes the place of the sample that was not asked for the longest time; false if all were asked
// for now.
bool DraftSamples::make_room(const DraftedSample& sample) {
  DraftedSample* oldest = nullptr;
  for (DraftedSample* other : by_lane_) {
    if (other == nullptr || other == &sample || other->asked_in == round_) continue;
    if (oldest == nullptr || other->asked_in < oldest->asked_in) oldest = other;
  }
  if (oldest == nullptr) return false;
  displace(*oldest);
  return true;
}

void DraftSamples::displace(DraftedSample& sample) {
  Group& group = *sample.sequence.group;
  by_lane_[static_cast<size_t>(kv_.leave_lane(sample.sequence))] = nullptr;
  --num_placed_;
  sample.written.clear();
  if (group.num_running == 0) kv_.stop(group);
}

bool DraftSamples::place(DraftedSample& sample, int64_t tokens) {
  Sequence& sequence = sample.sequence;
  Group& group = *sequence.group;
  if (group.prompt_tokens() + tokens > max_positions_) return false;
  if (sequence.lane < 0) {
    while (!has_room(sample)) {
      if (!make_room(sample)) return false;
    }
    if (!group.is_started()) kv_.start(group);
    const auto lane = std::find(by_lane_.begin(), by_lane_.end(), nullptr);
    *lane = &sample;
    ++num_placed_;
    kv_.enter_lane(sequence, lane - by_lane_.begin());
  }
  while (!kv_.grow(sequence, tokens)) {
    if (!make_room(sample)) return false;
  }
  return true;
}

void DraftSamples::add_computed(Group& group, int64_t tokens) {
  group.computed += tokens;
  if (group.is_computed()) kv_.share_prompt(group);
}

void DraftSamples::change_weights() {
  kv_.invalidate();
  for (const auto& [id, sample] : samples_) {
    if (!sample->written.empty()) sample->sequence.is_stale = true;
    if (sample->sequence.group->computed > 0) sample->sequence.group->is_stale = true;
  }
}

}  // namespace nibble
