#include "coordinator/run_files.h"

#include <algorithm>
#include <vector>

#include "core/base/clock.h"
#include "core/base/fail.h"
#include "core/base/log.h"

namespace nibble {
namespace {

constexpr std::string_view kGroups = "groups-";

}  // namespace

std::filesystem::path prepare_run_directory(const std::filesystem::path& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory / "checkpoints", error);
  std::filesystem::create_directories(directory / "plots", error);
  if (error) {
    fail(ErrorCode::kInvalidArgument, "cannot create run directory '{}': {}", directory.string(),
         error.message());
  }
  return directory;
}

std::vector<std::filesystem::path> finished_checkpoints(
    const std::filesystem::path& run_directory) {
  std::vector<std::filesystem::path> finished;
  for (const auto& entry : std::filesystem::directory_iterator(run_directory / "checkpoints")) {
    const bool partial = entry.path().extension() == ".partial";
    if (!partial && std::filesystem::exists(entry.path() / "meta.json")) {
      finished.push_back(entry.path());
    }
  }
  std::sort(finished.rbegin(), finished.rend());
  return finished;
}

bool begins_elsewhere(const std::filesystem::path& run_directory,
                      const std::vector<std::filesystem::path>& checkpoints) {
  return !checkpoints.empty() && checkpoints[0].parent_path() != run_directory / "checkpoints";
}

void write_checkpoint(const std::filesystem::path& run_directory, const CheckpointSection& section,
                      TrainerRanks& trainers, int64_t step, int64_t version,
                      const std::string& rollout_state) {
  const Stopwatch clock;
  const auto path = run_directory / "checkpoints" / fmt::format("step-{:06}", step);
  trainers.save(path.string(), step, version, rollout_state);
  get_logger("run")->info("checkpoint step={} path={} ms={:.0f}", step, path.string(),
                          clock.elapsed_ms());
  // Older ones go only now that this one is durable.
  const auto finished = finished_checkpoints(run_directory);
  for (size_t i = static_cast<size_t>(section.keep); i < finished.size(); ++i) {
    std::filesystem::remove_all(finished[i]);
  }
  // Those of a checkpoint that was not finished too.
  for (const auto& entry : std::filesystem::directory_iterator(run_directory / "checkpoints")) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kGroups)) continue;
    const std::string number = entry.path().stem().string().substr(kGroups.size());
    if (!std::filesystem::exists(run_directory / "checkpoints" / ("step-" + number))) {
      std::filesystem::remove(entry.path());
    }
  }
}

std::filesystem::path saved_groups_path(const std::filesystem::path& run_directory, int64_t step) {
  return run_directory / "checkpoints" / fmt::format("{}{:06}.bin", kGroups, step);
}

}  // namespace nibble
