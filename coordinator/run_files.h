#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace nibble {

/// Makes a run's directory and its folders; returns it. Throws Error{kInvalidArgument} naming it if
/// it cannot be made.
std::filesystem::path prepare_run_directory(const std::filesystem::path& directory);

/// Where a run's checkpoints are.
std::filesystem::path checkpoints_of(const std::filesystem::path& run_directory);

/// A run's finished checkpoints, newest first.
std::vector<std::filesystem::path> finished_checkpoints(const std::filesystem::path& run_directory);

/// Whether a run goes on from checkpoints of another run's directory.
bool begins_elsewhere(const std::filesystem::path& run_directory,
                      const std::vector<std::filesystem::path>& checkpoints);

/// Removes finished checkpoints but for the newest `keep`, groups without a checkpoint, and what an
/// interrupted run left of checkpoints: none may be being written.
void remove_old_checkpoints(const std::filesystem::path& run_directory, int64_t keep);

/// Of groups that were whole at a checkpoint and not yet trained on (saved_groups.h):
/// checkpoints/groups-NNNNNN.bin. It is written before the checkpoint that names its hash.
std::filesystem::path saved_groups_path(const std::filesystem::path& run_directory, int64_t step);

}  // namespace nibble
