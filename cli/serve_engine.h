#pragma once

#include <cstdint>

#include "cli/draft_flags.h"
#include "cli/model_flags.h"
#include "rollout/server/engine_thread.h"

namespace nibble {

/// What `nibble serve` makes its engine of.
struct ServeEngineFlags {
  ModelFlags model;
  int64_t max_running = 64;
  int64_t max_queued = 256;      ///< samples that wait beside those that run
  int64_t max_positions = 4096;  ///< of one sequence; less if the model takes less
  int64_t kv_tokens = 16384;
  int64_t max_draft_tokens = 0;  ///< guessed in one step of a sample; 0: none
  DraftFlags draft;

  int64_t capacity() const { return max_running + max_queued; }
};

/// Tokens that one sequence may have, of which the last is never computed.
int64_t served_positions(const ServeEngineFlags& flags, int64_t model_positions);

/// Loads the model and makes an engine that serves it as version 1, on the calling thread, which
/// the engine then belongs to. Throws Error as load_model.
ServedEngine make_served_engine(const ServeEngineFlags& flags);

}  // namespace nibble
