#pragma once

#include "cli/run_config.h"

namespace nibble {

/// Looks into the files that a job names before anything is started or written: every line of the
/// prompts, the header of every weight file (no weights are read), the tokenizer. Throws Error
/// {kInvalidArgument} or {kNotFound} naming file and line, tensor or field.
void check_inputs(const RunConfig& config);

}  // namespace nibble
