#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "core/base/task_thread.h"
#include "core/comm/process_group.h"
#include "core/models/decoder.h"
#include "rollout/engine_rank.h"
#include "rollout/following_worker.h"
#include "rollout/rollout_worker.h"
#include "weight_sync/receiver.h"

namespace nibble {

/// The engine of a rollout process, or its rank of one that several share: the first rank has the
/// worker, on a thread of its own, the others follow. Any thread may call any method once start()
/// has returned.
class JobEngine {
 public:
  /// `number`: of this process among all ranks of all engines.
  JobEngine(RolloutWorkerOptions options, int number);
  ~JobEngine();
  JobEngine(const JobEngine&) = delete;
  JobEngine& operator=(const JobEngine&) = delete;

  /// Makes the engine, once; `at`: where its ranks meet. Throws what makes it impossible, after
  /// which it may be tried again.
  void start(const Rendezvous& at);

  /// Of the model; start() has been called.
  const ModelSpec& spec() const { return *spec_; }
  Mesh mesh() const { return engine_mesh(options_.rollout); }
  int rank() const { return number_ % mesh().world; }
  bool has_ranks() const { return mesh().world > 1; }

  /// Throws Error{kFailedPrecondition} before start() and on a rank that follows.
  RolloutWorker& worker();
  TaskThread& thread() { return thread_; }

  /// Serves these weights; returns the milliseconds that the engine could not work. Other ranks
  /// than the first swap when that one says.
  double swap(const ServedWeights& served);
  /// Lets go of the weights, between two steps; returns the version that they had.
  int64_t release_weights();

 private:
  void make_engine(const Rendezvous& at);

  RolloutWorkerOptions options_;
  const int number_;
  std::optional<ModelSpec> spec_;
  std::unique_ptr<EngineRank> rank_;            // null: the engine has one
  std::unique_ptr<RolloutWorker> worker_;       // lives on thread_; or
  std::unique_ptr<FollowingWorker> following_;  // of a rank that does not lead
  TaskThread thread_;                           // last member
};

}  // namespace nibble
