#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "coordinator/run_config.h"
#include "coordinator/trainer_ranks.h"

namespace nibble {

/// Makes a run's directory and its folders; returns it. Throws Error{kInvalidArgument} naming it if
/// it cannot be made.
std::filesystem::path prepare_run_directory(const std::filesystem::path& directory);

/// A run's finished checkpoints, newest first.
std::vector<std::filesystem::path> finished_checkpoints(const std::filesystem::path& run_directory);

/// Whether a run goes on from checkpoints of another run's directory.
bool begins_elsewhere(const std::filesystem::path& run_directory,
                      const std::vector<std::filesystem::path>& checkpoints);

/// Has the ranks write checkpoints/step-NNNNNN, then removes older finished checkpoints but for the
/// newest `section.keep`, and groups that were saved with them. `rollout_state`: see RolloutFeed;
/// empty: none.
void write_checkpoint(const std::filesystem::path& run_directory, const CheckpointSection& section,
                      TrainerRanks& trainers, int64_t step, int64_t version,
                      const std::string& rollout_state = {});

/// Of groups that were whole at a checkpoint and not yet trained on (saved_groups.h):
/// checkpoints/groups-NNNNNN.bin. It is written before the checkpoint that names its hash.
std::filesystem::path saved_groups_path(const std::filesystem::path& run_directory, int64_t step);

}  // namespace nibble
