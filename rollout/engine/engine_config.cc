#include "rollout/engine/engine_config.h"

#include "core/base/fail.h"

namespace nibble {

void check_engine_config(const EngineConfig& config) {
  struct Field {
    const char* name;
    int64_t value;
    int64_t most;
  };
  constexpr int64_t kMaxSlots = int64_t{1} << 30;  // slot numbers are int32
  constexpr int64_t kMaxRows = int64_t{1} << 20;
  constexpr int64_t kMaxBlock = 256;
  constexpr int64_t kMaxDraft = 256;
  for (const Field& field : {Field{"max_running", config.max_running, kMaxRows},
                             Field{"max_step_tokens", config.max_step_tokens, kMaxRows},
                             Field{"kv_slots", config.kv_slots, kMaxSlots},
                             Field{"max_positions", config.max_positions, kMaxSlots},
                             Field{"max_requests", config.max_requests, kMaxSlots},
                             Field{"max_logit_rows", config.max_logit_rows, kMaxRows},
                             Field{"block_tokens", config.block_tokens, kMaxBlock}}) {
    if (field.value >= 1 && field.value <= field.most) continue;
    fail(ErrorCode::kInvalidArgument, "engine {} is {}; it must lie in [1, {}]", field.name,
         field.value, field.most);
  }
  if (config.max_draft_tokens < 0 || config.max_draft_tokens > kMaxDraft) {
    fail(ErrorCode::kInvalidArgument, "engine max_draft_tokens is {}; it must lie in [0, {}]",
         config.max_draft_tokens, kMaxDraft);
  }
}

EngineConfig in_whole_blocks(EngineConfig config) {
  config.kv_slots =
      (config.kv_slots + config.block_tokens - 1) / config.block_tokens * config.block_tokens;
  return config;
}

}  // namespace nibble
