#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/data/sample.h"
#include "core/kernels/log_softmax.h"
#include "rollout/engine/request.h"
#include "rollout/engine/scheduler.h"

namespace nibble {

/// A prompt to sample from.
struct RolloutPrompt {
  uint64_t prompt_id = 0;  ///< names it in random draws; unique in training, and in an evaluation
  Json content;            ///< a string as it is, or chat messages through the model's template
  Json label;
  int64_t attempt = 0;  ///< the caller's number of it
};

/// What to generate.
struct RolloutJob {
  int64_t weight_version = 0;  ///< that must be served
  std::vector<RolloutPrompt> prompts;
  int64_t samples_per_prompt = 1;
  bool evaluation = false;  ///< samples are scored and not kept; they go before those of training
  uint64_t seed = 0;
  kernels::SamplingParams sampling;
  int64_t max_new_tokens = 1;
};

/// A prompt's samples, all drawn.
struct DrawnGroup {
  uint64_t prompt_id = 0;
  int64_t attempt = 0;
  bool evaluation = false;
  Json label;
  std::vector<int32_t> prompt;
  std::vector<Completion> samples;  ///< by sample index
};

/// What the engine did until a group was whole, or time was up.
struct DrawnGroups {
  std::vector<DrawnGroup> groups;  ///< as they were finished
  double generate_ms = 0.0;
  EngineTotals engine;
};

/// One scored sample, for the coordinator's eyes: texts are capped.
struct SampleReport {
  uint64_t prompt_id = 0;
  Sample sample;
  std::string prompt_text;
  std::string response_text;
  std::optional<std::string> error;  ///< why it could not be scored; it is dropped
  RouteShape route_shape;            ///< of its routes and the next
  std::vector<uint8_t> prompt_routes;
};

/// A group's samples, scored.
struct GroupReport {
  uint64_t prompt_id = 0;
  int64_t attempt = 0;
  bool evaluation = false;
  int64_t computed_tokens = 0;        ///< as training will compute them; evaluation: 0
  std::vector<SampleReport> samples;  ///< by sample index
};

struct RolloutOutcome {
  std::vector<GroupReport> groups;  ///< as they were finished
  double generate_ms = 0.0;
  double reward_ms = 0.0;
  int64_t generated_tokens = 0;
  int64_t prefill_tokens = 0;
  EngineTotals engine;  ///< what the engine did meanwhile
};

}  // namespace nibble
