#pragma once

#include <cstdint>

#include "core/spec/mesh.h"

namespace nibble {

/// Sizes of an engine; its memory follows from them and is allocated once.
struct EngineConfig {
  int64_t max_running = 64;       ///< sequences that decode together
  int64_t max_step_tokens = 256;  ///< tokens computed in one step, prompts and decodes together
  int64_t kv_slots = 16384;       ///< tokens in the cache (KvCache::bytes_per_slot each)
  int64_t max_positions = 4096;   ///< prompt and response of one sequence, in tokens
  int64_t max_requests = 4096;    ///< submitted and not yet taken back, finished ones included
  int64_t max_logit_rows = 64;    ///< rows of float32 logits that exist at a time
  int64_t max_draft_tokens = 0;   ///< guessed tokens of a sample in one step; 0: none are guessed
  bool drafts_adapt = true;       ///< guesses only what pays; false: all there are
  int64_t block_tokens = 16;      ///< the cache is handed out in blocks of so many tokens
  Mesh mesh;  ///< of the ranks that compute its steps (StepRanks::mesh()); the engine is the first
};

/// Throws Error{kInvalidArgument} naming the field that is out of range.
void check_engine_config(const EngineConfig& config);
/// With whole blocks only: kv_slots rounded up.
EngineConfig in_whole_blocks(EngineConfig config);

/// What happens at a weight swap to sequences whose cache was computed with older weights.
enum class KvPolicy {
  kKeep,       ///< they go on; later tokens carry the new version
  kRecompute,  ///< they go on after their cache was computed anew; tokens and routes stay
  kAbort,      ///< they end as aborted, with what they have; what has not started stays queued
};

}  // namespace nibble
