#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>

#include "trainer/state/checkpoint_snapshot.h"

namespace nibble {

/// The one snapshot that a rank may hold: taken, written and finished by calls that name its step.
/// A second one is refused, which bounds memory. Any thread may call any method.
class SnapshotSlot {
 public:
  explicit SnapshotSlot(int rank) : rank_(rank) {}

  /// Takes `make`'s snapshot for a checkpoint; rank 0 makes room for its files. Throws
  /// Error{kFailedPrecondition} if there is one already.
  void take(const std::filesystem::path& directory, int64_t step,
            const std::function<std::unique_ptr<const CheckpointSnapshot>()>& make);
  /// Writes its rows. Throws Error{kFailedPrecondition} if there is none of that step, and as
  /// CheckpointSnapshot.
  void write(int64_t step);
  /// Rank 0 publishes, or removes what was written; then it is forgotten, but not if that failed.
  void finish(int64_t step, bool publish);
  /// Forgets it, without a trace on disk only if it was never written.
  void clear();

 private:
  struct Held {
    std::filesystem::path directory;
    std::unique_ptr<const CheckpointSnapshot> snapshot;
  };
  std::shared_ptr<const Held> held(int64_t step) const;

  const int rank_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Held> held_;  // guarded by mutex_; shared: with the call that writes it
};

}  // namespace nibble
