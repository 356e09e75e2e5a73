#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/store/records.h"

namespace nibble {

/// What the last publication of a finished step cost.
struct PublicationFigures {
  int64_t bytes = 0;  ///< on the wire, all engines
  double total_ms = 0.0;
  double wire_ms = 0.0;
  double pause_ms = 0.0;
  int64_t serving_engines = 0;
  /// Attained on the wire, 1e9 bytes a second; nullopt: nothing was moved.
  std::optional<double> gb_per_s() const;
};

/// How often an engine was left behind and came back; `is_fenced`: as the log stands.
struct FencingRecord {
  std::string engine;
  bool is_fenced = false;
  int64_t times_fenced = 0;
  int64_t times_caught_up = 0;
};

/// What the run directory says of a run, whether or not it still goes on. Times are Unix
/// milliseconds.
struct RunRecord {
  std::filesystem::path directory;
  int64_t read_at_ms = 0;
  std::optional<StepRecord> last_step;     ///< begun, perhaps not ended
  std::optional<int64_t> finished_step;    ///< last one with figures
  std::optional<int64_t> num_steps;        ///< run.steps of config.yaml, if it can be read
  std::optional<double> step_ms;           ///< mean of the last steps
  std::optional<double> tokens_per_s;      ///< of the finished step
  std::optional<VersionRecord> committed;  ///< newest
  std::vector<int64_t> undecided;          ///< prepared versions without a decision
  std::vector<int64_t> aborted;            ///< ascending
  std::optional<PublicationFigures> publication;
  std::vector<FencingRecord> fencing;       ///< by engine; those that were ever left behind
  std::optional<EventRecord> last_failure;  ///< newest event that is a warning or an error
  std::string coordinator_address;          ///< of the last start; empty: never recorded
  std::string coordinator_id;
};

/// Reads run.db without writing, also while the job does. Throws Error{kInvalidArgument} or
/// Error{kNotFound} if `directory` is no run, Error{kDataLoss} for a damaged run.db.
RunRecord read_run_record(const std::filesystem::path& directory);

}  // namespace nibble
