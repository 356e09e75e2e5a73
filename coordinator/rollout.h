#pragma once

#include <cstdint>
#include <vector>

#include "coordinator/metrics_log.h"
#include "coordinator/worker_client.h"

namespace nibble {

/// Groups that a step trains on, or that an evaluation looks at, and what it took to get them.
struct Rollout {
  std::vector<SampleResult> samples;  ///< by prompt id, then sample; those without a reward too
  std::vector<GroupSource> groups;    ///< by prompt id; those with a sample that has a reward
  std::vector<GroupSource> unscored;  ///< the others: engines keep them too
  EngineFigures engines;
  double wait_ms = 0.0;         ///< that the step waited for them
  int64_t filtered_groups = 0;  ///< whole, and replaced for want of an advantage
  int64_t stale_groups = 0;     ///< whole, and dropped for their weights' age
  int64_t dropped_groups = 0;   ///< begun, and ended when the step had enough
  int64_t carried_groups = 0;   ///< that go on, or wait, while the step trains
  double staleness_mean = 0.0;  ///< steps, over groups: of the oldest token's weights
  int64_t staleness_max = 0;

  /// Adds a whole group.
  void add(GroupResult group);
  /// Brings samples and groups into one order, whatever the engines' speed: training must not
  /// depend on it.
  void sort();
  int64_t generated_tokens() const;
  /// Of the samples with a reward; 0: none has one.
  double reward_mean() const;
  void add_figures(MetricsRow& row) const;
};

/// Whether the group's rewards are not all equal.
bool has_spread(const GroupResult& group);

}  // namespace nibble
