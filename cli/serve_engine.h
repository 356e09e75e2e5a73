#pragma once

#include <cstdint>
#include <memory>

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

/// An engine that serves the model as version 1 and belongs to the calling thread. `model` is
/// shared with the engine and what scores beside it. Errors as of make_engine.
ServedEngine make_served_engine(const ServeEngineFlags& flags,
                                const std::shared_ptr<const LoadedModel>& model);

}  // namespace nibble
