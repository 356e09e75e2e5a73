#include "rollout/server/served_model.h"

#include <algorithm>

namespace nibble {

int64_t most_text_bytes(const Tokenizer& tokenizer, int64_t max_tokens) {
  size_t longest = 1;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest = std::max(longest, tokenizer.id_to_token_bytes(id).size());
  }
  // Normalization shortens: composed characters have a third of the bytes at best.
  constexpr int64_t kComposed = 3;
  return kComposed * max_tokens * static_cast<int64_t>(longest);
}

}  // namespace nibble
