#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/comm/process_group.h"
#include "rollout/engine/step_runner.h"

namespace nibble {

/// The first rank of an engine of several: its step runners tell the other ranks
/// (follow_leader()) what they do, so that all compute every step together. Runners of one leader
/// may belong to different threads: their steps take turns.
class RankLeader {
 public:
  /// `control` moves host bytes between the ranks; this is its rank 0. It outlives the leader.
  explicit RankLeader(ProcessGroup& control);
  /// Ends the others, if they are still there.
  ~RankLeader();
  RankLeader(const RankLeader&) = delete;
  RankLeader& operator=(const RankLeader&) = delete;

  /// Runners on all ranks. The leader outlives them.
  ///   make_own       of this rank's part
  ///   graph_batches  that the others capture as CUDA graphs, as this one does
  StepRunnerFactory factory(StepRunnerFactory make_own, std::vector<int64_t> graph_batches);

 private:
  class Runner;
  struct Link;
  const std::unique_ptr<Link> link_;
};

}  // namespace nibble
