#pragma once

#include <filesystem>
#include <string>

#include "core/comm/process_group.h"
#include "trainer/state/checkpoint_reader.h"
#include "trainer/state/optimizer_state.h"

namespace nibble {

/// What one rank adds to a training checkpoint (e.g. checkpoints/step-000010), copied to the host,
/// so that it can be written while training goes on. Constant after construction; the calls belong
/// to one thread at a time, whichever.
///
/// begin(), write_rows() and publish() each wait for the one before to have ended on all ranks.
/// So meta.json is written last, and a directory under its own name is complete.
class CheckpointSnapshot {
 public:
  /// Copies `state`, wherever it is. Borrows the layout's table. `progress.updates` is the state's.
  CheckpointSnapshot(const ShardLayout& layout, const OptimizerState& state,
                     const TrainProgress& progress, std::string model_config_json, int rank,
                     int world);

  /// Rank 0: makes "DIRECTORY.partial", without what an earlier attempt left there.
  void begin(const std::filesystem::path& directory) const;
  /// A safetensors file of float32 master, m and v rows (and held scales) with their content
  /// hashes. Durable when it returns. Throws Error{kResourceExhausted} for a full disk.
  void write_rows(const std::filesystem::path& directory) const;
  /// Rank 0: config.json of the model with its quantization_config, meta.json, then the name. A
  /// checkpoint under that name is replaced.
  void publish(const std::filesystem::path& directory) const;
  /// Instead of publish(): removes what was written.
  static void discard(const std::filesystem::path& directory);

  int64_t step() const { return progress_.step; }

 private:
  const ShardLayout layout_;
  const OptimizerState state_;  // on the host
  const TrainProgress progress_;
  const std::string model_config_json_;
  const int rank_;
  const int world_;
};

/// All of it at once, for ranks that have nothing else to do. Collective; every rank calls it.
/// Throws Error{kUnavailable} if another rank failed; then nothing is left.
void save_train_checkpoint(const std::filesystem::path& directory,
                           const CheckpointSnapshot& snapshot, ProcessGroup& group);

}  // namespace nibble
