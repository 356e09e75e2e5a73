#pragma once

#include "cli/run_config.h"

namespace nibble {

/// Whether a job learns given tokens (algorithm.loss: sft) instead of rollouts.
bool is_supervised(const RunConfig& config);

/// Refuses what does not go with the kind of job: values that a supervised job would not look at,
/// and what only a supervised one has in any other. Compares with the defaults, so that an
/// effective configuration is accepted again. Then sets algorithm.aggregation of a supervised job
/// to its only value, token-mean, where the file says nothing. Throws Error{kInvalidArgument}
/// naming key and line.
void settle_job_kind(RunConfig& config, const ConfigSource& source);

}  // namespace nibble
