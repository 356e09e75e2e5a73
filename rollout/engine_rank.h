#pragma once

#include <cstdint>
#include <memory>

#include "core/comm/process_group.h"
#include "core/models/step_ranks.h"
#include "core/spec/mesh.h"
#include "rollout/engine/rank_leader.h"

namespace nibble {

/// This process's place among the ranks that compute one engine's steps
/// (docs/decisions/0013-engine-ranks.md), and its ways to the others. Its groups end with it.
class EngineRank {
 public:
  /// Meets the others: all ranks of `mesh` at once, on a GPU if the calling thread is bound to one
  /// (`on_gpu`). Throws as join_gloo_group() and join_nccl_group().
  EngineRank(const Rendezvous& at, const Mesh& mesh, int rank, bool on_gpu);

  int rank() const { return control_->rank(); }
  const Mesh& mesh() const { return mesh_; }
  StepRanks step_ranks() const;
  /// Moves host bytes.
  ProcessGroup& control() { return *control_; }
  /// Of rank 0; null on the others.
  RankLeader* leader() { return leader_.get(); }
  /// The least of all ranks' `value`. Collective.
  int64_t least(int64_t value);
  /// Ends what waits for the other ranks with Error{kUnavailable}, here and there. Any thread.
  void abort() noexcept;

 private:
  const Mesh mesh_;
  std::unique_ptr<ProcessGroup> control_;
  std::unique_ptr<ProcessGroup> steps_;  // of bytes on the GPU; null: control_ moves them
  std::unique_ptr<RankLeader> leader_;
};

}  // namespace nibble
