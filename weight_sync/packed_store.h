#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "core/base/clock.h"
#include "core/models/weights.h"

namespace nibble {

/// Rows that a process has packed: those that row_shard_layout(manifest, world) gives `rank`.
struct HeldPacking {
  int rank = 0;
  int world = 1;
  SharedPacking parameters;
};

/// Where the trainer rank and the rollout engine of one process meet (cluster.placement:
/// colocated). The rank puts each version's packing here, the engine takes it away; so the store
/// keeps none alive, and memory is the holders' business. Any thread may call any method.
class PackedStore {
 public:
  /// The process is trainer rank `rank` of `world`, and engine number `rank`.
  PackedStore(int rank, int world) : rank_(rank), world_(world) {}

  void put(int64_t version, SharedPacking parameters);
  /// Waits for `version`. Throws Error{kDeadlineExceeded} naming it if the rank has not put it in
  /// time, Error{kFailedPrecondition} if it has put a later one.
  HeldPacking take(int64_t version, Deadline deadline);

  int rank() const { return rank_; }
  int world() const { return world_; }

 private:
  const int rank_;
  const int world_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t version_ = 0;       // guarded by mutex_: the last one put
  SharedPacking parameters_;  // guarded by mutex_; null once taken
};

}  // namespace nibble
