#include "rollout/engine/scheduler.h"

#include <algorithm>

#include "core/base/fail.h"
#include "core/base/philox.h"

namespace nibble {
namespace {

// Ids must differ among `requests` and from those in use.
void check_ids_are_new(const std::vector<GenerateRequest>& requests,
                       const std::unordered_map<uint64_t, std::unique_ptr<Sequence>>& in_use) {
  std::vector<uint64_t> ids;
  ids.reserve(requests.size());
  for (const GenerateRequest& request : requests) ids.push_back(request.id);
  std::sort(ids.begin(), ids.end());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!in_use.contains(ids[i]) && (i == 0 || ids[i] != ids[i - 1])) continue;
    fail(ErrorCode::kInvalidArgument, "request {}: the id is in use", ids[i]);
  }
}

bool ends_at(Sequence& sequence, int32_t token) {
  const auto& ids = sequence.request.stop_ids;
  if (std::find(ids.begin(), ids.end(), token) != ids.end()) return true;
  return sequence.request.stop != nullptr && sequence.request.stop->ends_at(token);
}

}  // namespace

void StepPlan::clear() {
  tokens.clear();
  position.clear();
  slot.clear();
  first.clear();
  count.clear();
  spans.clear();
  draws.clear();
  drawers.clear();
}

Scheduler::Scheduler(const EngineConfig& config)
    : config_(config),
      slots_(config.kv_slots),
      slot_table_(static_cast<size_t>(config.max_running * config.max_positions)) {
  for (int64_t lane = config.max_running - 1; lane >= 0; --lane) free_lanes_.push_back(lane);
  running_.reserve(static_cast<size_t>(config.max_running));
}

SubmitOutcome Scheduler::submit(std::vector<GenerateRequest> requests) {
  check_ids_are_new(requests, sequences_);
  if (sequences_.size() + finished_.size() + requests.size() >
      static_cast<size_t>(config_.max_requests)) {
    return SubmitOutcome::kQueueFull;
  }
  std::vector<std::shared_ptr<Group>> groups;
  std::unordered_multimap<uint64_t, std::shared_ptr<Group>> by_prompt_id;
  for (GenerateRequest& request : requests) {
    std::shared_ptr<Group> group;
    const auto [begin, end] = by_prompt_id.equal_range(request.prompt_id);
    for (auto it = begin; it != end && group == nullptr; ++it) {
      if (it->second->prompt == request.prompt) group = it->second;
    }
    if (group == nullptr) {
      group = std::make_shared<Group>();
      group->prompt = std::move(request.prompt);
      groups.push_back(group);
      by_prompt_id.emplace(request.prompt_id, group);
    }
    request.prompt.clear();
    auto sequence = std::make_unique<Sequence>();
    sequence->completion.id = request.id;
    sequence->group = group;
    sequence->request = std::move(request);
    group->want_routes = group->want_routes || sequence->request.want_routes;
    group->members.push_back(sequence.get());
    sequences_.emplace(sequence->request.id, std::move(sequence));
  }
  for (const auto& group : groups) {
    waiting_.insert(waiting_.end(), group->members.begin(), group->members.end());
  }
  return SubmitOutcome::kAccepted;
}

void Scheduler::admit() {
  while (!waiting_.empty() && !free_lanes_.empty()) {
    Sequence& sequence = *waiting_.front();
    Group& group = *sequence.group;
    const int64_t prompt_tokens = group.prompt_tokens();
    const int64_t needed = sequence.response_slots() + (group.is_started() ? 0 : prompt_tokens);
    if (needed > slots_.num_free()) return;
    if (!group.is_started()) {
      group.slots.resize(group.prompt.size());
      slots_.take(group.slots);
    }
    sequence.lane = free_lanes_.back();
    free_lanes_.pop_back();
    int32_t* lane = lane_slots(sequence.lane);
    std::copy(group.slots.begin(), group.slots.end(), lane);
    slots_.take({lane + prompt_tokens, static_cast<size_t>(sequence.response_slots())});
    waiting_.pop_front();
    running_.push_back(&sequence);
  }
}

void Scheduler::plan(StepPlan& plan) {
  plan.clear();
  admit();
  plan_decodes(plan);
  plan_prompts(plan);
  plan_responses(plan);
  NIBBLE_CHECK(plan.num_tokens() > 0 || !has_work(), "{} waiting requests cannot start",
               waiting_.size());
}

void Scheduler::plan_decodes(StepPlan& plan) {
  const size_t count = running_.size();
  size_t at = count == 0 ? 0 : next_decode_ % count;
  for (size_t i = 0; i < count && plan.num_tokens() < config_.max_step_tokens; ++i) {
    Sequence& sequence = *running_[at];
    at = (at + 1) % count;
    if (!sequence.group->is_computed() || sequence.num_behind() > 0) continue;
    add_tokens(plan, {sequence.group.get(), &sequence, plan.num_tokens(), 1}, sequence);
    add_draw(plan, sequence);
  }
  next_decode_ = at;
}

void Scheduler::plan_prompts(StepPlan& plan) {
  const Group* last = nullptr;  // members run next to each other; the first one's lane serves all
  for (const Sequence* sequence : running_) {
    const int64_t room = config_.max_step_tokens - plan.num_tokens();
    if (room == 0) return;
    Group& group = *sequence->group;
    if (group.is_computed() || &group == last) continue;
    last = &group;
    const int64_t chunk = std::min(room, group.prompt_tokens() - group.computed);
    add_tokens(plan, {&group, nullptr, plan.num_tokens(), chunk}, *sequence);
    if (group.computed + chunk < group.prompt_tokens()) continue;
    if (group.routed == group.prompt_tokens()) continue;  // computed anew: they have their tokens
    for (Sequence* member : group.members) add_draw(plan, *member);
  }
}

// What a sequence has besides its last token is in the cache, unless it is computed anew.
void Scheduler::plan_responses(StepPlan& plan) {
  for (Sequence* sequence : running_) {
    const int64_t room = config_.max_step_tokens - plan.num_tokens();
    if (room == 0) return;
    if (!sequence->group->is_computed() || sequence->num_behind() == 0) continue;
    const int64_t chunk = std::min(room, sequence->num_behind());
    add_tokens(plan, {sequence->group.get(), sequence, plan.num_tokens(), chunk}, *sequence);
  }
}

void Scheduler::add_tokens(StepPlan& plan, const StepPlan::Span& span,
                           const Sequence& lane_of) const {
  const int64_t table_row = lane_of.lane * config_.max_positions;
  const int64_t start = span.sequence == nullptr
                            ? span.group->computed
                            : span.group->prompt_tokens() + span.sequence->computed;
  for (int64_t p = start; p < start + span.num_tokens; ++p) {
    const int64_t in_response = p - span.group->prompt_tokens();
    plan.tokens.push_back(span.sequence == nullptr
                              ? span.group->prompt[static_cast<size_t>(p)]
                              : span.sequence->completion.tokens[static_cast<size_t>(in_response)]);
    plan.position.push_back(static_cast<int32_t>(p));
    plan.slot.push_back(slot_table_[static_cast<size_t>(table_row + p)]);
    plan.first.push_back(table_row);
    plan.count.push_back(static_cast<int32_t>(p + 1));
  }
  plan.spans.push_back(span);
}

// From the plan's last token so far.
void Scheduler::add_draw(StepPlan& plan, Sequence& sequence) {
  const GenerateRequest& request = sequence.request;
  const int64_t position = sequence.group->prompt_tokens() + sequence.num_tokens();
  plan.draws.push_back({plan.num_tokens() - 1, request.sampling,
                        philox_uniform({request.seed, request.prompt_id, request.sample_index,
                                        static_cast<uint32_t>(position)}),
                        -1, request.want_plain_log_probs, request.num_top_log_probs});
  plan.drawers.push_back(&sequence);
}

void Scheduler::commit(const StepPlan& plan, int64_t version) {
  for (const StepPlan::Span& span : plan.spans) {
    const bool is_prompt = span.sequence == nullptr;
    int64_t& computed = is_prompt ? span.group->computed : span.sequence->computed;
    int64_t& routed = is_prompt ? span.group->routed : span.sequence->routed;
    computed += span.num_tokens;
    routed = std::max(routed, computed);
  }
  for (size_t i = 0; i < plan.draws.size(); ++i) {
    add_token(*plan.drawers[i], plan.draws[i], version);
  }
}

void Scheduler::add_token(Sequence& sequence, const Draw& draw, int64_t version) {
  Completion& completion = sequence.completion;
  completion.tokens.push_back(draw.token);
  completion.log_probs.push_back(draw.log_prob);
  completion.versions.push_back(version);
  if (sequence.request.want_plain_log_probs) {
    completion.plain_log_probs.push_back(draw.plain_log_prob);
  }
  if (sequence.request.num_top_log_probs > 0) completion.top_log_probs.push_back(draw.top);
  if (sequence.request.on_token) sequence.request.on_token(completion);
  if (ends_at(sequence, draw.token)) {
    finish(sequence, FinishReason::kStop);
  } else if (sequence.num_tokens() == sequence.request.max_new_tokens) {
    finish(sequence, FinishReason::kLength);
  }
}

void Scheduler::finish(Sequence& sequence, FinishReason reason) {
  Group& group = *sequence.group;
  sequence.completion.reason = reason;
  if (sequence.request.want_routes) {
    // The response's are there already; the prompt's go before them.
    Routes& routes = sequence.completion.routes;
    routes.positions = group.routed + sequence.routed;
    routes.bytes.insert(routes.bytes.begin(), group.routes.begin(), group.routes.end());
  }
  finished_.push_back(std::move(sequence.completion));

  if (sequence.lane >= 0) {
    slots_.release({lane_slots(sequence.lane) + group.prompt_tokens(),
                    static_cast<size_t>(sequence.response_slots())});
    free_lanes_.push_back(sequence.lane);
    running_.erase(std::find(running_.begin(), running_.end(), &sequence));
  } else {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &sequence));
  }
  group.members.erase(std::find(group.members.begin(), group.members.end(), &sequence));
  if (group.members.empty()) slots_.release(group.slots);
  sequences_.erase(sequence.request.id);
}

bool Scheduler::abort(uint64_t id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return false;
  finish(*it->second, FinishReason::kAborted);
  return true;
}

void Scheduler::abort_started() {
  while (!running_.empty()) finish(*running_.front(), FinishReason::kAborted);
  while (!waiting_.empty() && waiting_.front()->group->is_started()) {
    finish(*waiting_.front(), FinishReason::kAborted);
  }
}

void Scheduler::recompute_started() {
  for (auto& [id, sequence] : sequences_) {
    sequence->computed = 0;
    sequence->group->computed = 0;
  }
}

std::vector<Completion> Scheduler::take_finished() { return std::exchange(finished_, {}); }

EngineStats Scheduler::stats() const {
  return {static_cast<int64_t>(waiting_.size()), static_cast<int64_t>(running_.size()),
          static_cast<int64_t>(finished_.size()), slots_.num_free()};
}

}  // namespace nibble
