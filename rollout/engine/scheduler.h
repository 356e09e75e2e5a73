#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "rollout/engine/engine_config.h"
#include "rollout/engine/request.h"
#include "rollout/engine/sequence.h"
#include "rollout/engine/slot_allocator.h"
#include "rollout/engine/step_plan.h"

namespace nibble {

/// Where an engine's requests and slots are.
struct EngineStats {
  int64_t num_waiting = 0;
  int64_t num_running = 0;
  int64_t num_finished = 0;  ///< not yet taken
  int64_t free_slots = 0;
};

enum class SubmitOutcome { kAccepted, kQueueFull };

/// Decides which tokens the next step computes: every running sequence's next token first, then
/// chunks of prompts, and of responses that are computed anew, with what is left of the step.
/// Computes nothing itself. One thread.
///
/// Admission is first come, first served, and reserves every slot a sequence may ever need, so an
/// admitted sequence always finishes. Requests of one group are admitted next to each other: only
/// the group at the head of the queue can hold a prompt while members wait, and any member fits
/// beside its own prompt (check_request), so admission cannot deadlock.
class Scheduler {
 public:
  explicit Scheduler(const EngineConfig& config);

  /// Queues checked requests, all or none. Those with the same prompt_id and prompt become one
  /// group. Throws Error{kInvalidArgument} for an id that is in use.
  [[nodiscard]] SubmitOutcome submit(std::vector<GenerateRequest> requests);

  /// Admits what fits and fills `plan`; at least one token if has_work(). Until commit() nothing
  /// is counted as computed, so a step that failed is planned again.
  void plan(StepPlan& plan);
  /// After the plan's tokens were computed and drawn, with weights of `version`.
  void commit(const StepPlan& plan, int64_t version);

  /// Ends a request with what it has; false if no unfinished request has this id.
  bool abort(uint64_t id);
  /// Ends every request with tokens in the cache.
  void abort_started();
  /// Everything in the cache is computed again, in chunks; slots, tokens and routes stay.
  void recompute_started();

  bool has_work() const { return !sequences_.empty(); }
  std::vector<Completion> take_finished();
  EngineStats stats() const;
  /// Cache slots of running sequences, which KeyIndex::first counts into.
  const int32_t* slot_table() const { return slot_table_.data(); }

 private:
  void admit();
  void plan_decodes(StepPlan& plan);
  void plan_prompts(StepPlan& plan);
  void plan_responses(StepPlan& plan);
  void add_tokens(StepPlan& plan, const StepPlan::Span& span, const Sequence& lane_of) const;
  static void add_draw(StepPlan& plan, Sequence& sequence);
  void add_token(Sequence& sequence, const Draw& draw, int64_t version);
  void finish(Sequence& sequence, FinishReason reason);
  int32_t* lane_slots(int64_t lane) { return slot_table_.data() + lane * config_.max_positions; }

  const EngineConfig config_;
  SlotAllocator slots_;
  std::vector<int32_t> slot_table_;  // [max_running, max_positions]
  std::vector<int64_t> free_lanes_;
  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences_;  // unfinished, by id
  std::deque<Sequence*> waiting_;
  std::vector<Sequence*> running_;  // in order of admission
  size_t next_decode_ = 0;          // where decodes go on if a step was too small for all
  std::vector<Completion> finished_;
};

}  // namespace nibble
