#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
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
/// prompts_per_step, sync and one_step_off are deterministic, and go on from a checkpoint as if
/// there had been none: as many prompts are begun as are filtered out, in the stream's order, and
/// all that pass are taken. One thread.
class RolloutFeed {
 public:
  using PromptAt = std::function<PromptTask(int64_t place)>;
  /// Borrows the pool. `settings` but for the version.
  RolloutFeed(const SamplingPlan& plan, const DrawSettings& settings, PromptAt prompt_at,
              RolloutPool& pool);

  /// Where a run that resumes goes on, by the state of its checkpoint; empty (of older ones): after
  /// so many steps in sync without filter. Throws Error{kDataLoss} for a state that cannot be.
  void restore(const std::string& state, int64_t steps);
  /// Then, as soon as engines serve: hands them the groups that save() wrote. Where the file is
  /// damaged or gone that is said, and their prompts begin anew, like those that were under way.
  void restore_groups(const std::filesystem::path& file);
  /// For a checkpoint of now: writes whole groups, if there are any, to `file`, and returns the
  /// state, JSON.
  std::string save(const std::filesystem::path& file);

  /// As RolloutPool; what is lost there, or here, begins anew.
  void set_serving(const std::vector<int>& engines, int64_t version);

  /// `version` is what the engines serve, of the weights after `step` steps.
  void note_published(int64_t version, int64_t step);

  /// The groups of a step, as soon as it has enough. `begins_next`: but in sync, prompts of the
  /// next one begin. Throws Error{kDeadlineExceeded} saying what was missing,
  /// Error{kUnavailable} if no sample has a reward, and what an engine threw.
  Rollout take(int64_t step, bool begins_next);
  /// Before a publication: one_step_off waits for what was begun.
  void settle();
  /// Gives up what is drawn or under way, for a run that goes back to other weights. Its prompts do
  /// not come again.
  void abandon();
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
  std::vector<int64_t> saved_;  // places whose groups restore_groups() brings
  std::string saved_sha256_;
  std::deque<int64_t> again_;           // places to begin before the next one
  std::map<int64_t, int64_t> step_of_;  // by version that a group may be of
  int64_t trained_steps_ = 0;
  int64_t in_training_ = 0;         // groups, from take() to the next version
  std::vector<GroupResult> ready_;  // of the next step
  Rollout counts_;                  // since the last take(): what was not taken
};

}  // namespace nibble
