#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "rollout/engine/request.h"
#include "rollout/server/given_scorer.h"

namespace nibble {

/// What becomes of a job. Called by the engine's thread only, which waits for it: so it must be
/// short. Nothing comes after failed(), nor after every sample and prompt is done.
class JobListener {
 public:
  virtual ~JobListener() = default;
  /// A token has been drawn: the last one of `so_far`, whose reason is not set yet.
  virtual void token_drawn(size_t sample, const Completion& so_far) = 0;
  virtual void sample_done(size_t sample, Completion done) = 0;
  virtual void prompt_scored(size_t prompt, std::vector<GivenToken> tokens) = 0;
  virtual void failed(const Error& error) = 0;
};

/// What one HTTP request wants from the engine.
struct EngineJob {
  std::vector<GenerateRequest> samples;  ///< their ids are chosen by the engine's thread
  /// Prompts whose own tokens are scored; may be empty.
  std::vector<std::vector<int32_t>> prompts_to_score;
  int32_t num_top_of_prompts = 0;
  Deadline deadline;
  std::shared_ptr<JobListener> listener;  // shared: with the answer that is written meanwhile

  int64_t size() const { return std::ssize(samples) + std::ssize(prompts_to_score); }
  /// What it counts of an engine's capacity: scoring goes beside the samples.
  int64_t weight() const { return std::max(std::ssize(samples), std::ssize(prompts_to_score)); }
};

}  // namespace nibble
