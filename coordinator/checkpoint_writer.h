#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "coordinator/trainer_ranks.h"
#include "core/base/background_task.h"

namespace nibble {

/// Has the trainer ranks write a run's checkpoints while the run goes on, one at a time. A save
/// waits for the copies of all ranks' states only; a thread then lets the ranks write their files,
/// has rank 0 publish the checkpoint once all have, and removes older ones. So a run that is killed
/// at any moment leaves its last finished checkpoint as it is. One thread.
class CheckpointWriter {
 public:
  /// Borrows the ranks. The newest `keep` checkpoints stay.
  CheckpointWriter(std::filesystem::path run_directory, int64_t keep, TrainerRanks& ranks);
  /// Lets the one that is being written end, for a while.
  ~CheckpointWriter();

  /// Begins checkpoints/step-NNNNNN, after the one before it has ended. `save_rollouts`, if there
  /// are any, is called then: it writes what belongs to the checkpoint beside it
  /// (saved_groups_path) and returns the state to keep in it. Throws as check(), and what a rank
  /// threw.
  void save(int64_t step, int64_t version, const std::function<std::string()>& save_rollouts = {});
  /// Throws what became of the one that is being written, if it has failed.
  void check() const;
  /// Waits for the one that is being written, then check().
  void finish();

 private:
  void write(const std::filesystem::path& path, int64_t step, double blocked_ms);

  const std::filesystem::path run_directory_;
  const int64_t keep_;
  TrainerRanks& ranks_;
  std::optional<BackgroundTask> in_flight_;  // last member
};

}  // namespace nibble
