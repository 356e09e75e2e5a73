#include "rollout/engine/scheduler.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {
namespace {

// What one more priority is worth in steps of waiting.
constexpr int64_t kStepsAPriority = 1024;

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

}  // namespace

EngineTotals EngineTotals::since(const EngineTotals& earlier) const {
  return {prompt_tokens - earlier.prompt_tokens,     cached_tokens - earlier.cached_tokens,
          num_preemptions - earlier.num_preemptions, guessed_tokens - earlier.guessed_tokens,
          accepted_tokens - earlier.accepted_tokens, decoded_tokens - earlier.decoded_tokens,
          decode_spans - earlier.decode_spans,       draft_ms - earlier.draft_ms};
}

Scheduler::Scheduler(const EngineConfig& config, int64_t route_bytes,
                     std::unique_ptr<Drafter> drafter)
    : config_(config),
      route_bytes_(route_bytes),
      kv_(config, route_bytes),
      drafter_(std::move(drafter)),
      policy_(config.drafts_adapt) {
  for (int64_t lane = config.max_running - 1; lane >= 0; --lane) free_lanes_.push_back(lane);
}

SubmitOutcome Scheduler::submit(std::vector<GenerateRequest> requests) {
  check_ids_are_new(requests, sequences_);
  if (sequences_.size() + finished_.size() + requests.size() >
      static_cast<size_t>(config_.max_requests)) {
    return SubmitOutcome::kQueueFull;
  }
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
      by_prompt_id.emplace(request.prompt_id, group);
    }
    auto sequence = make_sequence(std::move(request), group);
    if (drafter_) {
      drafter_->begin(sequence->request, group->prompt, sequence->completion.tokens);
    }
    waiting_.insert(sequence.get());
    sequences_.emplace(sequence->request.id, std::move(sequence));
  }
  return SubmitOutcome::kAccepted;
}

Order Scheduler::order_of(const GenerateRequest& request) {
  return {num_steps_ - kStepsAPriority * request.priority, num_submitted_++};
}

std::unique_ptr<Sequence> Scheduler::make_sequence(GenerateRequest request,
                                                   const std::shared_ptr<Group>& group) {
  auto sequence = std::make_unique<Sequence>();
  sequence->order = order_of(request);
  sequence->group = group;
  sequence->completion = std::move(request.drawn);
  sequence->completion.id = request.id;
  sequence->completion.reason = FinishReason::kAborted;
  request.drawn = {};
  request.prompt.clear();
  // Routes of the prompt and of all but the last token, which nobody has computed.
  Routes& routes = sequence->completion.routes;
  if (!routes.bytes.empty()) {
    const auto split = routes.bytes.begin() + group->prompt_tokens() * route_bytes_;
    sequence->prompt_routes.assign(routes.bytes.begin(), split);
    routes.bytes.erase(routes.bytes.begin(), split);
    sequence->routed = sequence->num_tokens() - 1;
    sequence->has_old_routes = true;  // of whatever weights the earlier request had
  }
  sequence->request = std::move(request);
  if (sequence->request.stop != nullptr) {
    for (const int32_t token : sequence->completion.tokens) sequence->request.stop->ends_at(token);
  }
  group->want_routes = group->want_routes || sequence->request.want_routes;
  group->members.push_back(sequence.get());
  return sequence;
}

void Scheduler::admit() {
  while (!waiting_.empty() && !free_lanes_.empty()) {
    // Room for those that will soon need it; without it the new one would stop one of them.
    const int64_t reserve = std::count_if(running_.begin(), running_.end(), [&](Sequence* running) {
      return 2 * (running->slots - running->num_tokens()) < kv_.block_tokens();
    });
    if (!start(**waiting_.begin(), reserve)) return;
  }
}

// The first of those that wait begins to run, if there is memory.
bool Scheduler::start(Sequence& sequence, int64_t reserve) {
  Group& group = *sequence.group;
  const int64_t response = std::max<int64_t>(1, sequence.num_tokens());
  const int64_t wanted = std::min(response, sequence.request.max_new_tokens - 1);
  const auto needed = [&] {
    return (group.is_started() ? 0 : kv_.blocks_to_start(group)) +
           kv_.blocks_for_response(group, wanted) + reserve;
  };
  while (needed() > kv_.num_available()) {
    if (!reclaim_idle_prompt(&group)) return false;
  }
  if (!group.is_started()) {
    const bool is_first = group.routed == 0 && group.cached == 0;
    kv_.start(group);
    if (is_first) group.cached = group.computed;
    totals_.cached_tokens += group.computed;
  }
  idle_prompts_.erase(&group);
  kv_.enter_lane(sequence, free_lanes_.back());
  free_lanes_.pop_back();
  const bool has_grown = kv_.grow(sequence, wanted);
  NIBBLE_CHECK(has_grown, "request {}: its memory is gone", sequence.request.id);
  waiting_.erase(&sequence);
  running_.insert(&sequence);
  return true;
}

// Prompts of sequences that all wait can be computed again. The latest goes first.
bool Scheduler::reclaim_idle_prompt(const Group* but) {
  Group* latest = nullptr;
  for (Group* group : idle_prompts_) {
    if (group == but) continue;
    if (latest == nullptr || latest->members.front()->order < group->members.front()->order) {
      latest = group;
    }
  }
  if (latest == nullptr) return false;
  idle_prompts_.erase(latest);
  kv_.stop(*latest);
  return true;
}

// Every sequence that will compute its next token gets a slot for it.
void Scheduler::make_room_for_decodes() {
  const std::vector<Sequence*> in_order(running_.begin(), running_.end());
  for (Sequence* sequence : in_order) {
    if (sequence->lane < 0 || !sequence->group->is_computed()) continue;  // stopped by now
    if (sequence->num_tokens() > 0) make_room(*sequence);
  }
}

// False if the sequence itself had to stop.
bool Scheduler::make_room(Sequence& sequence) {
  while (!kv_.grow(sequence, sequence.num_tokens())) {
    if (reclaim_idle_prompt(nullptr)) continue;
    Sequence& last = **running_.rbegin();
    preempt(last);
    if (&last == &sequence) return false;
  }
  return true;
}

void Scheduler::preempt(Sequence& sequence) {
  ++totals_.num_preemptions;
  leave(sequence);
  waiting_.insert(&sequence);
}

void Scheduler::leave(Sequence& sequence) {
  free_lanes_.push_back(kv_.leave_lane(sequence));
  running_.erase(&sequence);
  if (sequence.group->num_running == 0) idle_prompts_.insert(sequence.group.get());
}

void Scheduler::finish(Sequence& sequence, FinishReason reason) {
  Group& group = *sequence.group;
  if (group.members.size() == 1 && sequence.lane >= 0) kv_.share_response(sequence);
  Completion& completion = sequence.completion;
  completion.reason = reason;
  completion.cached_prompt_tokens = group.cached;
  if (drafter_) drafter_->end(completion.id, reason != FinishReason::kAborted);
  if (sequence.request.want_routes) {
    // The response's are there already; the prompt's go before them.
    Routes& routes = completion.routes;
    const bool has_own = !sequence.prompt_routes.empty();
    const auto& prompt = has_own ? sequence.prompt_routes : group.routes;
    routes.positions = (has_own ? group.prompt_tokens() : group.routed) + sequence.routed;
    routes.bytes.insert(routes.bytes.begin(), prompt.begin(), prompt.end());
  }
  finished_.push_back(std::move(completion));

  if (sequence.lane >= 0) {
    leave(sequence);
  } else {
    waiting_.erase(&sequence);
  }
  group.members.erase(std::find(group.members.begin(), group.members.end(), &sequence));
  if (group.members.empty()) {
    idle_prompts_.erase(&group);
    if (group.is_started()) kv_.stop(group);
  }
  sequences_.erase(sequence.request.id);
}

bool Scheduler::abort(uint64_t id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return false;
  finish(*it->second, FinishReason::kAborted);
  return true;
}

void Scheduler::change_weights() {
  kv_.invalidate();
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->computed > 0) sequence->is_stale = true;
    if (sequence->group->computed > 0) sequence->group->is_stale = true;
    sequence->has_old_routes = sequence->has_old_routes || sequence->routed > 0;
    sequence->group->has_old_routes =
        sequence->group->has_old_routes || sequence->group->routed > 0;
  }
}

void Scheduler::abort_started() {
  std::vector<Sequence*> started;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->lane >= 0 || sequence->group->is_started()) started.push_back(sequence.get());
  }
  std::sort(started.begin(), started.end(), InOrder());
  for (Sequence* sequence : started) finish(*sequence, FinishReason::kAborted);
}

void Scheduler::recompute_started() {
  while (!running_.empty()) {
    Sequence& last = **running_.rbegin();
    leave(last);
    waiting_.insert(&last);
  }
  while (reclaim_idle_prompt(nullptr)) {
  }
}

std::vector<Completion> Scheduler::take_finished() { return std::exchange(finished_, {}); }

EngineStats Scheduler::stats() const {
  EngineStats stats;
  static_cast<EngineTotals&>(stats) = totals_;
  stats.num_waiting = static_cast<int64_t>(waiting_.size());
  stats.num_running = static_cast<int64_t>(running_.size());
  stats.num_finished = static_cast<int64_t>(finished_.size());
  stats.free_slots = kv_.num_available() * kv_.block_tokens();
  stats.reusable_slots = kv_.tree().num_blocks() * kv_.block_tokens();
  stats.route_bytes = kv_.tree().route_bytes();
  stats.draft_bytes = drafter_ ? drafter_->num_bytes() : 0;
  return stats;
}

}  // namespace nibble
