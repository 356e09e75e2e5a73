#pragma once

#include "cli/run_config.h"

namespace nibble {

/// Refuses algorithms that make no sense: coefficients that count the same KL twice, groups of one
/// where an advantage compares samples, values that what is chosen would not look at, and what
/// needs a model that no job has. Each message names both keys. Compares with the defaults, so that
/// an effective configuration is accepted again. Not for supervised jobs (settle_job_kind()).
/// Throws Error{kInvalidArgument}, or Error{kUnimplemented} for gae.
void check_algorithm(const RunConfig& config, const ConfigSource& source);

}  // namespace nibble
