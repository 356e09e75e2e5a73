#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "rollout/engine/draft_policy.h"
#include "rollout/engine/drafter.h"
#include "rollout/engine/engine_config.h"
#include "rollout/engine/kv_placement.h"
#include "rollout/engine/request.h"
#include "rollout/engine/sequence.h"
#include "rollout/engine/step_plan.h"

namespace nibble {

/// What an engine has done.
struct EngineTotals {
  int64_t prompt_tokens = 0;    ///< computed, for the first time or anew
  int64_t cached_tokens = 0;    ///< of prompts, found in the cache
  int64_t num_preemptions = 0;  ///< sequences that were stopped for want of memory
  int64_t guessed_tokens = 0;   ///< checked
  int64_t accepted_tokens = 0;  ///< of these, drawn as guessed
  int64_t decoded_tokens = 0;   ///< drawn after the first of a sample
  int64_t decode_spans = 0;     ///< a sample in a step: decoded_tokens without guesses
  double draft_ms = 0.0;        ///< that guessing took

  EngineTotals since(const EngineTotals& earlier) const;
};

/// Where an engine's requests and slots are, and what it has done since it was made.
struct EngineStats : EngineTotals {
  int64_t num_waiting = 0;
  int64_t num_running = 0;
  int64_t num_finished = 0;    ///< not yet taken
  int64_t free_slots = 0;      ///< those that hold what nobody uses included
  int64_t reusable_slots = 0;  ///< hold the beginning of a prompt that may come again
  int64_t route_bytes = 0;     ///< kept with these
  int64_t draft_bytes = 0;  ///< what guesses are made from; not a draft model's weights and cache
};

enum class SubmitOutcome { kAccepted, kQueueFull };

/// Decides which tokens the next step computes: every running sequence's next token first, then
/// chunks of prompts, and of responses that are computed anew, with what is left of the step.
/// Computes nothing itself. One thread.
///
/// A request starts if there is memory for its prompt and the tokens that it has, in the order of
/// priority and arrival. Its response takes blocks as it grows. When there are none left, the last
/// in that order is stopped: its blocks go to the others, it waits, and what it has is computed
/// again later. Any request fits alone (check_request), so the first always finishes.
class Scheduler {
 public:
  ///   route_bytes  of Routes for one token; 0: the model has none
  ///   drafter      guesses tokens, if max_draft_tokens says so; null: nobody does
  explicit Scheduler(const EngineConfig& config, int64_t route_bytes = 0,
                     std::unique_ptr<Drafter> drafter = nullptr);

  /// Queues checked requests, all or none. Those with the same prompt_id and prompt become one
  /// group. Throws Error{kInvalidArgument} for an id that is in use.
  [[nodiscard]] SubmitOutcome submit(std::vector<GenerateRequest> requests);

  /// Admits what fits and fills `plan`; at least one token if has_work(). Until accept() nothing
  /// is counted as computed, so a step that failed is planned again.
  void plan(StepPlan& plan);
  /// After the plan's tokens were computed and drawn, with weights of `version`: appends what was
  /// drawn to its samples and says how much of every span is kept.
  void accept(StepPlan& plan, int64_t version);
  /// After accept() and the recording of routes: counts what was kept as computed, and finishes
  /// samples that ended.
  void commit(const StepPlan& plan);
  /// How long the plan took, for the choice of how much to guess.
  void observe_time(const StepPlan& plan, double ms) {
    policy_.observe_step(plan.num_tokens(), ms);
  }

  /// Ends a request with what it has; false if no unfinished request has this id.
  bool abort(uint64_t id);
  /// Other weights from now on: what is in the cache is of no use to later prompts.
  void change_weights();
  /// Ends every request with tokens in the cache.
  void abort_started();
  /// Everything in the cache is computed again, in chunks; tokens and routes stay.
  void recompute_started();

  bool has_work() const { return !sequences_.empty(); }
  std::vector<Completion> take_finished();
  EngineStats stats() const;
  /// Cache slots of running sequences, which KeyIndex::first counts into.
  const int32_t* slot_table() const { return kv_.slot_table(); }

 private:
  struct InOrder {
    bool operator()(const Sequence* a, const Sequence* b) const { return a->order < b->order; }
  };
  using Queue = std::set<Sequence*, InOrder>;

  Order order_of(const GenerateRequest& request);
  std::unique_ptr<Sequence> make_sequence(GenerateRequest request,
                                          const std::shared_ptr<Group>& group);
  // Admission and memory.
  void admit();
  bool start(Sequence& sequence, int64_t reserve);
  bool reclaim_idle_prompt(const Group* but);
  void make_room_for_decodes();
  bool make_room(Sequence& sequence);
  void preempt(Sequence& sequence);
  void leave(Sequence& sequence);
  // Planning.
  void plan_decodes(StepPlan& plan);
  void plan_catching_up(StepPlan& plan);
  void add_prompt(StepPlan& plan, const Sequence& sequence, int64_t room);
  void add_tokens(StepPlan& plan, const StepPlan::Span& span, const Sequence& lane_of) const;
  void guess(std::span<Sequence* const> sequences, int64_t num_samples);
  void add_decode(StepPlan& plan, Sequence& sequence, std::vector<DraftToken>& guesses,
                  int64_t room);
  static void add_draw(StepPlan& plan, Sequence& sequence, int64_t row, int64_t ahead, int kind);
  int64_t accept_decode(StepPlan& plan, const StepPlan::Span& span, int64_t version);
  void add_token(Sequence& sequence, const Draw& draw, int64_t version);
  void finish(Sequence& sequence, FinishReason reason);

  const EngineConfig config_;
  const int64_t route_bytes_;
  KvPlacement kv_;
  const std::unique_ptr<Drafter> drafter_;  // null: none
  DraftPolicy policy_;
  std::vector<DraftQuery> queries_;  // of the step that is planned
  std::vector<int64_t> free_lanes_;
  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences_;  // unfinished, by id
  Queue waiting_;
  Queue running_;
  std::set<Group*> idle_prompts_;  // started, none of their members runs
  uint64_t num_submitted_ = 0;
  int64_t num_steps_ = 0;   // planned
  size_t next_decode_ = 0;  // where decodes go on if a step was too small for all
  std::vector<Completion> finished_;
  EngineTotals totals_;
};

}  // namespace nibble
