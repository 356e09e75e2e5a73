#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/comm/process_group.h"
#include "core/kernels/weight_kernels.h"
#include "trainer/state/checkpoint_reader.h"
#include "trainer/state/optimizer_state.h"

namespace nibble {

/// Writes `directory` (e.g. checkpoints/step-000010): one safetensors file of float32 master, m and
/// v rows (and held scales) per rank with their content hashes, config.json of the model with its
/// quantization_config, and meta.json last. The directory appears under its name only when
/// complete. Collective; every rank calls it. `kernels` are those of the state's device.
void save_train_checkpoint(const std::filesystem::path& directory, const ShardLayout& layout,
                           const OptimizerState& state, const TrainProgress& progress,
                           const std::string& model_config_json, ProcessGroup& group,
                           const kernels::WeightKernels& kernels);

/// Reads this rank's rows from a checkpoint that any number of ranks wrote. Throws Error naming the
/// file or tensor that is missing or does not fit the model, Error{kFailedPrecondition} if one of
/// checkpoint and `state` holds scales and the other does not.
TrainProgress load_train_checkpoint(const std::filesystem::path& directory,
                                    const ShardLayout& layout, OptimizerState& state);

/// Finished checkpoints below `root`, by step, ascending.
struct CheckpointEntry {
  int64_t step = 0;
  std::filesystem::path path;
};
std::vector<CheckpointEntry> list_checkpoints(const std::filesystem::path& root);

/// "step-000010".
std::string checkpoint_name(int64_t step);

/// Content hashes that do not depend on how many ranks wrote the checkpoint.
struct CheckpointDigest {
  TrainProgress progress;
  std::string weights_sha256;  ///< of the weights as served; see WeightsDigest
  std::string state_sha256;    ///< masters, moments, held scales, sorted by name; the update count
};
CheckpointDigest digest_checkpoint(const std::filesystem::path& directory);

}  // namespace nibble
