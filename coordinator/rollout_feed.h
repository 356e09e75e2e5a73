#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "coordinator/rollout.h"
#include "coordinator/rollout_pool.h"
#include "coordinator/sampling_plan.h"

namespace nibble {

/// Decides which prompts are sampled when, and which groups a step trains on:
///   sync          the first prompts_per_step groups that are whole and pass the filter, of prompts
///                 that are begun when the step asks; the others end, or wait for the next step
///                 (plan.carries)
///   one_step_off  the same, but begun when the step before has got its own, and whole before the
///                 next version is published: all of a group is of one version
///   async         whatever becomes whole; engines always have groups_in_flight
/// Prompts come by their place in the stream, which is their id. Where groups_in_flight is
/// prompts_per_step, sync and one_step_off are deterministic: as many prompts are begun as are
/// filtered out, in the stream's order, and all that pass are taken. One thread.
class RolloutFeed {
 public:
  using PromptAt = std::function<PromptTask(int64_t place)>;
  /// Borrows the pool. `settings` but for the version.
  RolloutFeed(const SamplingPlan& plan, const DrawSettings& settings, PromptAt prompt_at,
              RolloutPool& pool);

  /// Where a run that resumes goes on, by a checkpoint of it; empty: as one in sync without filter
  /// after so many steps. Groups that were under way begin anew. Throws Error{kDataLoss}.
  void restore(const std::string& state, int64_t steps);
  /// For a checkpoint of now; empty: restore() needs none.
  std::string state(int64_t steps) const;

  /// `version` is what the engines serve, of the weights after `step` steps.
  void note_published(int64_t version, int64_t step);

  /// The groups of a step, as soon as it has enough. `begins_next`: but in sync, prompts of the
  /// next one may begin. Throws Error{kDeadlineExceeded} saying what was missing,
  /// Error{kUnavailable} if no sample has a reward, and what an engine threw.
  Rollout take(int64_t step, bool begins_next);
  /// Before a publication: one_step_off waits for what was begun.
  void settle();
  /// After one: async begins what the engines may go on with.
  void refill();

 private:
  void gather(Deadline deadline);
  void top_up();
  void accept(GroupResult group);
  int64_t staleness(const GroupResult& group) const;
  int64_t num_ready() const { return std::ssize(ready_); }

  const SamplingPlan plan_;
  DrawSettings settings_;
  const PromptAt prompt_at_;
  RolloutPool& pool_;
  int64_t next_place_ = 0;
  std::deque<int64_t> again_;           // places to begin before the next one
  std::map<int64_t, int64_t> step_of_;  // by version that a group may be of
  int64_t trained_steps_ = 0;
  int64_t in_training_ = 0;         // groups, from take() to the next version
  std::vector<GroupResult> ready_;  // of the next step
  Rollout counts_;                  // since the last take(): what was not taken
};

}  // namespace nibble
