#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tokenizer/prompt_encoder.h"
#include "core/tokenizer/tokenizer.h"

namespace nibble {

/// What requests are read and checked against. Constant while the server runs; any thread.
struct ServedModel {
  std::string name;                        ///< clients ask for it by this name
  const Tokenizer* tokenizer = nullptr;    ///< null: token ids only
  const PromptEncoder* encoder = nullptr;  ///< null as well then
  std::vector<int32_t> stop_ids;           ///< of the model; end a sample
  int64_t vocab = 0;
  int64_t max_tokens = 0;        ///< positions of one sequence; the last new token needs none
  int64_t max_samples = 0;       ///< of one request: prompts x n
  int64_t max_prompt_bytes = 0;  ///< of one prompt as text: more cannot fit
  int64_t created_s = 0;         ///< Unix time of the server's start
};

/// The most bytes of text that `max_tokens` tokens can have come from.
int64_t most_text_bytes(const Tokenizer& tokenizer, int64_t max_tokens);

}  // namespace nibble
