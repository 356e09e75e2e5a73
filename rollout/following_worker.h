#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "core/base/error.h"
#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "core/ops/weight_source.h"
#include "rollout/engine_rank.h"
#include "rollout/rollout_worker.h"

namespace nibble {

/// A rank of an engine that does not lead: on a thread of its own it computes its part of every
/// step that the first rank orders, with the weights that were handed to it. Any thread may call
/// any method.
class FollowingWorker {
 public:
  /// `options.rank` is its place; with `spec` it outlives this. Takes part in the engine's plan of
  /// memory, then follows. Throws Error{kResourceExhausted} where no engine fits.
  FollowingWorker(const RolloutWorkerOptions& options, const ModelSpec& spec);
  /// Waits a moment for the first rank to end, then goes.
  ~FollowingWorker();

  /// Weights of this rank's rows: those that the first rank uses next, once it swaps to `version`.
  void set_weights(std::shared_ptr<const ResidentWeights> weights, int64_t version);
  /// Lets go of them: they are about to be overwritten. Returns the version that they had; what the
  /// engine still uses it uses until the first rank releases its own.
  int64_t release_weights();
  /// Throws what ended it, if it no longer follows.
  void check() const;

 private:
  std::shared_ptr<const ops::WeightSource> wait_for(int64_t version);
  void follow(const RolloutWorkerOptions& options, const ModelSpec& spec);

  EngineRank& rank_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<const ResidentWeights> weights_;  // guarded by mutex_, like all that follow
  int64_t version_ = 0;
  bool is_ending_ = false;
  bool has_ended_ = false;
  std::optional<Error> failure_;
  std::thread thread_;  // last member
};

}  // namespace nibble
