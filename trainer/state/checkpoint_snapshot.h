#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "core/comm/process_group.h"
#include "trainer/state/checkpoint_reader.h"
#include "trainer/state/optimizer_state.h"

namespace nibble {

/// A model's rows on a rank, wherever they are, and the text of its config.json. Borrowed.
struct StateSource {
  const ShardLayout& layout;
  const OptimizerState& state;
  std::string config_json;
};

/// What one rank adds to a training checkpoint (e.g. checkpoints/step-000010), copied to the host,
/// so that it can be written while training goes on. Constant after construction; the calls belong
/// to one thread at a time, whichever.
///
/// begin(), write_rows() and publish() each wait for the one before to have ended on all ranks.
/// So meta.json is written last, and a directory under its own name is complete.
class CheckpointSnapshot {
 public:
  /// Copies the states; borrows the tables of the layouts. `progress.updates` is the model's.
  ///   critic  null: there is none
  CheckpointSnapshot(const StateSource& model, const StateSource* critic,
                     const TrainProgress& progress, int rank, int world);

  /// Rank 0: makes "DIRECTORY.partial", without what an earlier attempt left there.
  void begin(const std::filesystem::path& directory) const;
  /// write_row_file() of the model and of the critic.
  void write_rows(const std::filesystem::path& directory) const;
  /// Rank 0: config.json of the model with its quantization_config, meta.json, then the name. A
  /// checkpoint under that name is replaced.
  void publish(const std::filesystem::path& directory) const;
  /// Instead of publish(): removes what was written.
  static void discard(const std::filesystem::path& directory);

  int64_t step() const { return progress_.step; }

 private:
  struct StateCopy {
    ShardLayout layout;
    OptimizerState state;  // on the host
    std::string config_json;
  };

  const StateCopy model_;
  const std::optional<StateCopy> critic_;
  const TrainProgress progress_;
  const int rank_;
  const int world_;
};

/// All of it at once, for ranks that have nothing else to do. Collective; every rank calls it.
/// Throws Error{kUnavailable} if another rank failed; then nothing is left.
void save_train_checkpoint(const std::filesystem::path& directory,
                           const CheckpointSnapshot& snapshot, ProcessGroup& group);

}  // namespace nibble
