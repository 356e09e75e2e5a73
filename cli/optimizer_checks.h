#pragma once

#include "cli/run_config.h"

namespace nibble {

/// Refuses schedules of learning rates that cannot be followed, moments that never change, and
/// homes of the state that exclude each other. Each message names the keys. Throws
/// Error{kInvalidArgument}.
void check_optimizer(const RunConfig& config, const ConfigSource& source);

}  // namespace nibble
