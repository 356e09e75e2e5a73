#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "cli/run_config.h"

namespace nibble {

/// What a job goes on from.
struct ResumePlan {
  std::vector<std::filesystem::path>
      checkpoints;                    ///< whole ones, newest first; none: a fresh start
  bool from_another_run = false;      ///< they are of another run directory
  std::vector<ChangedValue> changed;  ///< since the first of them was written

  /// One line for people; `changed` by key with both values.
  std::string message() const;
};

/// What `--resume` asks of a run.
struct ResumeWish {
  bool wanted = false;
  std::filesystem::path run;  ///< whose checkpoints; empty: those of run.directory
};

/// Looks for checkpoints, newest first, and at what changed since. Another run's directory is only
/// read. Throws Error{kInvalidArgument} if run.directory holds a run that is not to be resumed, or
/// if the first checkpoint cannot become this job, naming the key and both values;
/// Error{kNotFound} if another run has no checkpoint; of damage what the last checkpoint's reader
/// threw.
ResumePlan plan_resume(const RunConfig& config, const ResumeWish& wish);

}  // namespace nibble
