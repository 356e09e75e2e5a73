#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "rollout/engine/request.h"

namespace nibble {

/// A token of an answer, or of a prompt that is echoed.
struct AnswerToken {
  int32_t id = 0;
  float log_prob = 0.0f;                ///< at the sampling temperature
  std::optional<float> plain_log_prob;  ///< at temperature 1; of a prompt's first token nothing
  std::vector<TokenLogProb> top;        ///< at temperature 1
  int64_t version = 0;                  ///< of the weights
  int64_t text_offset = 0;              ///< where its text begins, in characters
};

/// An answer, or the next part of one in a stream.
struct AnswerPart {
  int64_t index = 0;
  std::string text;
  std::vector<AnswerToken> tokens;
  std::optional<FinishReason> reason;  ///< of the last part
  int64_t cached_prompt_tokens = 0;
  Routes routes;  ///< if wanted
};

/// What is counted of a whole request.
struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
};

/// Appends token number `at` of a completion.
void append_token(const Completion& completion, size_t at, std::vector<AnswerToken>& tokens);

}  // namespace nibble
