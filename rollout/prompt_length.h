#pragma once

#include <cstdint>
#include <span>

#include "core/tokenizer/tokenizer.h"
#include "rollout/rollout_config.h"

namespace nibble {

/// Whether a prompt and `new_tokens` more fit an engine whose cache has `kv_slots` tokens. Throws
/// Error{kInvalidArgument} quoting the prompt's beginning and naming the keys that set the limits.
void check_prompt_length(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                         int64_t new_tokens, const RolloutConfig& limits, int64_t kv_slots);

}  // namespace nibble
