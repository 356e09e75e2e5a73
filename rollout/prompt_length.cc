#include "rollout/prompt_length.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {

void check_prompt_length(const Tokenizer& tokenizer, std::span<const int32_t> prompt,
                         int64_t new_tokens, const RolloutConfig& limits, int64_t kv_slots) {
  constexpr size_t kQuotedTokens = 12;
  const int64_t most = std::min(limits.max_positions, kv_slots);
  const auto length = static_cast<int64_t>(prompt.size());
  if (new_tokens - 1 <= most - length) return;
  fail(ErrorCode::kInvalidArgument,
       "the prompt that begins '{}' has {} tokens; with rollout.max_new_tokens = {} it does not "
       "fit rollout.max_positions = {} and rollout.kv_tokens = {}: shorten it or raise these",
       tokenizer.decode(prompt.first(std::min(prompt.size(), kQuotedTokens))), length, new_tokens,
       limits.max_positions, limits.kv_tokens);
}

}  // namespace nibble
