#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "trainer/state/checkpoint_reader.h"
#include "trainer/state/optimizer_state.h"

namespace nibble {

/// Reads this rank's rows from a checkpoint that any number of ranks wrote. Throws Error naming the
/// file or tensor that is missing or does not fit the model, Error{kFailedPrecondition} if one of
/// checkpoint and `state` holds scales and the other does not. Of frozen parameters nothing is
/// read.
TrainProgress load_train_checkpoint(const std::filesystem::path& directory,
                                    const ShardLayout& layout, OptimizerState& state);

/// Reads this rank's rows of the critic; false, and nothing is read, if the checkpoint has none.
/// Errors as above.
bool load_critic_checkpoint(const std::filesystem::path& directory, const ShardLayout& layout,
                            OptimizerState& state);

/// Throws Error{kInvalidArgument} naming keys of the configuration unless a checkpoint trains
/// adapters of this shape, or none.
void check_same_adapters(const CheckpointReader& checkpoint, const std::optional<LoraShape>& lora);

/// Content hashes that do not depend on how many ranks wrote the checkpoint.
struct CheckpointDigest {
  TrainProgress progress;
  std::string weights_sha256;  ///< of the weights as served; see WeightsDigest
  /// The update count, then masters, moments and held scales of what is trained, sorted by name;
  /// then the critic's.
  std::string state_sha256;
};
CheckpointDigest digest_checkpoint(const std::filesystem::path& directory);

}  // namespace nibble
