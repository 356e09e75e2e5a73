#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "core/base/clock.h"
#include "core/models/weights.h"
#include "core/spec/mesh.h"

namespace nibble {

/// Rows that a process has packed: those that trainer rank `rank` owns (owned_slices).
struct HeldPacking {
  int rank = 0;
  Mesh mesh;
  SharedPacking parameters;
};

/// Where the trainer rank and the rollout engine of one process meet (cluster.placement:
/// colocated). The rank puts each version's packing here, the engine takes it away; so the store
/// keeps none alive, and memory is the holders' business. Any thread may call any method.
class PackedStore {
 public:
  /// The process is trainer rank `rank` of `mesh`, and engine number `rank`.
  PackedStore(int rank, const Mesh& mesh) : rank_(rank), mesh_(mesh) {}

  void put(int64_t version, SharedPacking parameters);
  /// Waits for `version`. Throws Error{kDeadlineExceeded} naming it if the rank has not put it in
  /// time, Error{kFailedPrecondition} if it has put a later one.
  HeldPacking take(int64_t version, Deadline deadline);

  int rank() const { return rank_; }
  const Mesh& mesh() const { return mesh_; }

 private:
  const int rank_;
  const Mesh mesh_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t version_ = 0;       // guarded by mutex_: the last one put
  SharedPacking parameters_;  // guarded by mutex_; null once taken
};

}  // namespace nibble
