#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace nibble {

/// The metrics of one run by name, over its steps in ascending order. NaN: no value in that step.
struct MetricTable {
  std::vector<double> step;
  std::map<std::string, std::vector<double>> columns;
};

/// Reads rows {"step": 3, "reward_mean": 0.5, "phase": {"generate_ms": 12}} of a metrics.jsonl;
/// nested names are joined with "/". Rows of one step (training, evaluation) are joined; a value
/// written again replaces the old one.
/// What follows the last newline is a row still being written, and is left out. Throws
/// Error{kInvalidArgument} naming file and line, also for a file without rows.
MetricTable read_metric_rows(const std::filesystem::path& path);

/// The rows of a run directory. Throws also Error{kNotFound} if it, or its metrics.jsonl, is not
/// there.
MetricTable read_run_metrics(const std::filesystem::path& run);

}  // namespace nibble
