#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "rollout/engine/draw.h"
#include "rollout/engine/step_runner.h"

namespace nibble {

/// A token of a given text, scored after those before it.
struct GivenToken {
  float plain_log_prob = 0.0f;    ///< at temperature 1
  std::vector<TokenLogProb> top;  ///< the likeliest in its place, if wanted
};

/// Scores given tokens, a chunk at a time, with the weights that an engine serves, in a KV cache of
/// one sequence. One thread, the engine's.
class GivenScorer {
 public:
  /// Allocates for sequences of up to `max_positions`. The arguments must outlive the scorer.
  GivenScorer(const ModelSpec& spec, const StepRunnerFactory& make_runner,
              const ops::WeightSource& weights, int64_t max_positions);

  bool is_busy() const { return !ids_.empty(); }
  /// Begins with `ids`: 1 to max_positions tokens of the vocabulary (the caller's duty).
  void begin(std::vector<int32_t> ids, int32_t num_top);
  /// Scores the next chunk; true once all are done.
  bool step();
  /// Of all tokens but the first, which nothing comes before. Ready for the next begin().
  std::vector<GivenToken> take();
  /// Forgets what it works on.
  void cancel() { ids_.clear(); }

 private:
  static EngineConfig sized(int64_t max_positions);

  const ModelSpec& spec_;
  const EngineConfig config_;
  const std::unique_ptr<StepRunner> runner_;
  std::vector<int32_t> slot_;  // 0, 1, 2, ...
  std::vector<int32_t> ids_;   // empty: not busy
  int32_t num_top_ = 0;
  size_t num_done_ = 0;
  StepPlan plan_;
  std::vector<GivenToken> scored_;
};

}  // namespace nibble
