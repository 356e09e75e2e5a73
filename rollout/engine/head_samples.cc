#include "rollout/engine/head_samples.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {
namespace {

// What a sample may hold beside its window, so that not every token moves all of it.
constexpr int64_t kSlack = 16;

}  // namespace

const float* HeadSample::state(int64_t position) const {
  if (states.contains(position)) return states.at(position);
  if (prompt_states != nullptr && prompt_states->contains(position)) {
    return prompt_states->at(position);
  }
  return nullptr;
}

bool HeadSample::find_inputs(int64_t window) {
  const int64_t last = num_tokens() - 2;
  if (state(last) == nullptr) return false;
  int64_t first = states.contains(last) ? states.begin() : prompt_states->begin();
  if (prompt_states != nullptr && prompt_states->end() == first) first = prompt_states->begin();
  // The last token is computed again where its guess was not asked for to the end.
  end = std::min(end, num_tokens() - 1);
  const bool goes_on = lane >= 0 && end > begin && end - 1 >= first && num_behind() <= window;
  if (!goes_on) begin = end = std::max(first + 1, num_tokens() - window);
  return true;
}

void HeadSample::add_computed(int64_t inputs) {
  end += inputs;
  states.drop_before(end - 2);
  if (prompt_states != nullptr && prompt_states->end() <= end - 2) prompt_states = nullptr;
}

HeadSamples::HeadSamples(const Limits& limits)
    : limits_(limits), by_lane_(static_cast<size_t>(limits.lanes)) {
  for (int64_t lane = 0; lane < limits.lanes; ++lane) {
    for (int64_t i = 0; i < 2 * lane_slots(); ++i) {
      slot_table_.push_back(static_cast<int32_t>(lane * lane_slots() + i % lane_slots()));
    }
  }
}

void HeadSamples::begin(const GenerateRequest& request, std::span<const int32_t> prompt,
                        std::span<const int32_t> drawn) {
  auto sample = std::make_unique<HeadSample>(limits_.hidden, count_);
  sample->request.id = request.id;
  sample->request.prompt_id = request.prompt_id;
  sample->request.sample_index = request.sample_index;
  sample->request.sampling = request.sampling;
  sample->request.seed = request.seed;
  sample->tokens.assign(prompt.begin(), prompt.end());
  sample->tokens.insert(sample->tokens.end(), drawn.begin(), drawn.end());
  sample->prompt_tokens = std::ssize(prompt);
  num_tokens_ += sample->num_tokens();
  samples_.emplace(request.id, std::move(sample));
}

void HeadSamples::extend(uint64_t id, int32_t token) {
  at(id).tokens.push_back(token);
  ++num_tokens_;
}

void HeadSamples::end(uint64_t id) {
  const auto found = samples_.find(id);
  NIBBLE_CHECK(found != samples_.end(), "request {} ends twice", id);
  num_tokens_ -= found->second->num_tokens();
  if (found->second->lane >= 0) displace(*found->second);
  samples_.erase(found);
}

// One that has not used any state yet.
bool HeadSamples::lacks_prompt(const Sequence& member) const {
  const HeadSample& sample = *samples_.at(member.request.id);
  return sample.end == 0 && sample.states.size() == 0;
}

// Only the last positions are looked back on.
bool HeadSamples::wants(const StepPlan::Span& span, int64_t position) const {
  if (span.sequence == nullptr) return position >= span.group->prompt_tokens() - limits_.window;
  return position >= samples_.at(span.sequence->request.id)->num_tokens() - 1 - limits_.window;
}

void HeadSamples::ask(StepPlan& plan) const {
  for (const StepPlan::Span& span : plan.spans) {
    if (span.sequence == nullptr &&
        std::none_of(span.group->members.begin(), span.group->members.end(),
                     [this](const Sequence* member) { return lacks_prompt(*member); })) {
      continue;
    }
    for (int64_t row = span.row; row < span.row + span.num_tokens; ++row) {
      if (!wants(span, plan.position[static_cast<size_t>(row)])) continue;
      plan.hidden_rows.push_back(static_cast<int32_t>(row));
    }
  }
}

// Held once for all samples of the prompt that lack them; null if none does.
HiddenStates* HeadSamples::prompt_states(const Group& group) {
  std::shared_ptr<HiddenStates> states;
  for (const Sequence* member : group.members) {
    if (!lacks_prompt(*member)) continue;
    if (auto& own = at(member->request.id).prompt_states; own != nullptr) states = own;
  }
  if (states == nullptr) states = std::make_shared<HiddenStates>(limits_.hidden, count_);
  for (const Sequence* member : group.members) {
    if (lacks_prompt(*member)) at(member->request.id).prompt_states = states;
  }
  return states.use_count() > 1 ? states.get() : nullptr;
}

void HeadSamples::observe(const StepPlan& plan, HeadExamples* examples) {
  NIBBLE_CHECK(std::ssize(plan.hidden) == std::ssize(plan.hidden_rows) * limits_.hidden,
               "{} values of {} hidden states", plan.hidden.size(), plan.hidden_rows.size());
  const float* state = plan.hidden.data();
  auto span = plan.spans.begin();
  for (const int32_t row : plan.hidden_rows) {
    while (row >= span->row + span->num_tokens) ++span;
    const int64_t position = plan.position[static_cast<size_t>(row)];
    if (row < span->row + span->num_kept) {
      if (span->sequence == nullptr) {
        HiddenStates* const shared = prompt_states(*span->group);
        if (shared != nullptr) add(*shared, position, state);
      } else {
        HeadSample& sample = at(span->sequence->request.id);
        add(sample.states, position, state);
        if (examples != nullptr) {
          examples->add(sample.request.id, position, state, sample.tokens);
        }
      }
    }
    state += limits_.hidden;
  }
}

// Without room nothing is added: what comes later then lies behind a gap.
void HeadSamples::add(HiddenStates& states, int64_t position, const float* state) const {
  if (count_.held >= max_states()) return;
  states.add(position, state);
  if (states.size() > limits_.window + kSlack) states.drop_before(states.end() - limits_.window);
}

void HeadSamples::begin_round(std::span<HeadSample* const> asking) {
  ++round_;
  for (HeadSample* sample : asking) sample->asked_in = round_;
}

bool HeadSamples::place(HeadSample& sample) {
  if (sample.lane >= 0) return true;
  auto lane = std::find(by_lane_.begin(), by_lane_.end(), nullptr);
  if (lane == by_lane_.end()) {
    lane = std::min_element(
        by_lane_.begin(), by_lane_.end(),
        [](const HeadSample* a, const HeadSample* b) { return a->asked_in < b->asked_in; });
    if ((*lane)->asked_in == round_) return false;
    displace(**lane);
  }
  *lane = &sample;
  sample.lane = lane - by_lane_.begin();
  ++num_placed_;
  return true;
}

void HeadSamples::displace(HeadSample& sample) {
  by_lane_[static_cast<size_t>(sample.lane)] = nullptr;
  sample.lane = -1;
  --num_placed_;
}

int64_t HeadSamples::first_key(const HeadSample& sample, int64_t position) const {
  const int64_t first = position + 1 - num_keys(sample, position);
  return 2 * sample.lane * lane_slots() + first % lane_slots();
}

int32_t HeadSamples::num_keys(const HeadSample& sample, int64_t position) const {
  return static_cast<int32_t>(std::min(limits_.window, position + 1 - sample.begin));
}

int64_t HeadSamples::num_bytes() const {
  return 4 * (num_tokens_ + count_.held * limits_.hidden + table_entries());
}

}  // namespace nibble
