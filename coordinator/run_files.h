#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace nibble {

class RunStore;

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

/// After the checkpoint of step `newest` was written: removes those of later steps, from which the
/// run did not go on (they are damaged, or were rolled back), and of the others all but the last
/// `keep`; groups without a checkpoint; and what an interrupted run left of checkpoints: none may
/// be being written.
void remove_old_checkpoints(const std::filesystem::path& run_directory, int64_t newest,
                            int64_t keep);

/// Records in the run's store that it went on from `step` rather than from the first of
/// `checkpoints`, if that is so: that one was damaged.
void note_fallback(const std::vector<std::filesystem::path>& checkpoints, int64_t step,
                   RunStore& store);

/// Where a run is noted that began at another run's checkpoint, until it has its own: the path of
/// that run's directory.
std::filesystem::path origin_file(const std::filesystem::path& run_directory);

/// Of groups that were whole at a checkpoint and not yet trained on (saved_groups.h):
/// checkpoints/groups-NNNNNN.bin. It is written before the checkpoint that names its hash.
std::filesystem::path saved_groups_path(const std::filesystem::path& run_directory, int64_t step);

}  // namespace nibble
