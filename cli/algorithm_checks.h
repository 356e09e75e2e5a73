#pragma once

#include "cli/run_config.h"

namespace nibble {

/// Refuses algorithms that make no sense: coefficients that count the same KL twice, groups of one
/// where an advantage compares samples, values that what is chosen would not look at. Each message
/// names both keys. Compares with the defaults, so that an effective configuration is accepted
/// again. Not for supervised jobs (settle_job_kind()). Throws Error{kInvalidArgument}.
void check_algorithm(const RunConfig& config, const ConfigSource& source);

}  // namespace nibble
