#pragma once

#include "cli/job_plans.h"
#include "cli/run_config.h"

namespace nibble {

/// Refuses what makes no sense together with `lora`; each message names both keys. What needs no
/// file to see. Throws Error{kInvalidArgument}.
void check_lora(const RunConfig& config, const ConfigSource& source);
/// The rest: trainer and engines hold the same frozen weights, and the model has matrices for
/// lora.targets.
void check_lora_plans(const RunConfig& config, const ConfigSource& source, const JobPlans& plans);

}  // namespace nibble
