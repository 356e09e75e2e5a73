#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace nibble {

/// A training checkpoint of a run.
struct CheckpointEntry {
  int64_t step = 0;
  std::filesystem::path path;
};

/// The directory of a step's checkpoint: "step-000010"; from step 1,000,000 on longer.
std::string checkpoint_name(int64_t step);

/// Finished checkpoints below `root` (checkpoints/ of a run), by step, ascending; none if it is no
/// directory. One without meta.json is passed over with a warning: it is damaged.
std::vector<CheckpointEntry> list_checkpoints(const std::filesystem::path& root);

}  // namespace nibble
