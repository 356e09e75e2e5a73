#include "coordinator/run_files.h"

#include <algorithm>
#include <ranges>
#include <vector>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/checkpoint/checkpoint_list.h"
#include "core/store/run_store.h"

namespace nibble {
namespace {

constexpr std::string_view kGroups = "groups-";

}  // namespace

std::filesystem::path prepare_run_directory(const std::filesystem::path& directory) {
  std::error_code error;
  std::filesystem::create_directories(checkpoints_of(directory), error);
  std::filesystem::create_directories(directory / "plots", error);
  if (error) {
    fail(ErrorCode::kInvalidArgument, "cannot create run directory '{}': {}", directory.string(),
         error.message());
  }
  return directory;
}

std::filesystem::path checkpoints_of(const std::filesystem::path& run_directory) {
  return run_directory / "checkpoints";
}

std::vector<std::filesystem::path> finished_checkpoints(
    const std::filesystem::path& run_directory) {
  std::vector<std::filesystem::path> finished;
  for (CheckpointEntry& entry : list_checkpoints(checkpoints_of(run_directory))) {
    finished.push_back(std::move(entry.path));
  }
  std::reverse(finished.begin(), finished.end());
  return finished;
}

bool begins_elsewhere(const std::filesystem::path& run_directory,
                      const std::vector<std::filesystem::path>& checkpoints) {
  return !checkpoints.empty() && checkpoints[0].parent_path() != checkpoints_of(run_directory);
}

void remove_old_checkpoints(const std::filesystem::path& run_directory, int64_t newest,
                            int64_t keep) {
  const std::filesystem::path root = checkpoints_of(run_directory);
  int64_t kept = 0;
  for (const CheckpointEntry& entry : list_checkpoints(root) | std::views::reverse) {
    if (entry.step <= newest && kept++ < keep) continue;
    std::filesystem::remove_all(entry.path);
  }
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".partial")) std::filesystem::remove_all(entry.path());
    if (!name.starts_with(kGroups)) continue;
    const std::string number = entry.path().stem().string().substr(kGroups.size());
    if (!std::filesystem::exists(root / ("step-" + number))) {
      std::filesystem::remove(entry.path());
    }
  }
}

void note_fallback(const std::vector<std::filesystem::path>& checkpoints, int64_t step,
                   RunStore& store) {
  if (checkpoints.empty() || checkpoints[0].filename() == checkpoint_name(step)) return;
  store.record_event({unix_ms(), Severity::kWarning, "coordinator", "resumed",
                      fmt::format("went on from {}: {} is damaged", checkpoint_name(step),
                                  checkpoints[0].filename().string())});
}

std::filesystem::path origin_file(const std::filesystem::path& run_directory) {
  return run_directory / "resumed_from";
}

std::filesystem::path saved_groups_path(const std::filesystem::path& run_directory, int64_t step) {
  return checkpoints_of(run_directory) / fmt::format("{}{:06}.bin", kGroups, step);
}

}  // namespace nibble
