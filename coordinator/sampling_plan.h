#pragma once

#include <chrono>
#include <cstdint>

#include "core/config/rollout_schedule.h"

namespace nibble {

/// What is sampled in a training step; the coordinator's view of the `rollout` section.
struct SamplingPlan {
  int64_t prompts_per_step = 8;
  int64_t samples_per_prompt = 8;
  int64_t max_new_tokens = 64;
  double temperature = 1.0;
  double top_p = 1.0;
  int64_t top_k = 0;
  std::chrono::milliseconds timeout{600'000};
  int engine_ranks = 1;  ///< rollout workers of one engine
  RolloutSchedule schedule = RolloutSchedule::kSync;
  int64_t max_staleness = 0;     ///< steps that a token's weights may trail the newest
  int64_t groups_in_flight = 8;  ///< under way, or whole and waiting; >= prompts_per_step
  DynamicFilter filter = DynamicFilter::kNone;
  bool carries = false;  ///< sync: what a step did not wait for goes on in the next one
};

}  // namespace nibble
