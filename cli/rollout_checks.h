#pragma once

#include "cli/run_config.h"

namespace nibble {

/// What of a job's `rollout` no single key can tell and no file is needed for: guesses that nobody
/// makes, ranks that do not fit together. Throws Error naming the keys and where they stand.
void check_rollout(const RunConfig& config, const ConfigSource& source);

/// Whether rollout.draft_head names a directory.
bool has_stored_head(const RunConfig& config);

}  // namespace nibble
