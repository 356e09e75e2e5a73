#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tokenizer/added_tokens.h"
#include "core/tokenizer/bpe.h"
#include "core/tokenizer/pre_tokenizer.h"

namespace nibble {

/// A tokenizer.json, checked and taken apart.
struct TokenizerSpec {
  std::vector<AddedToken> added_tokens;
  bool nfc = false;
  std::vector<PreTokenizerStep> pre_tokenizer;
  BpeModel model;  ///< without the tokens that the byte alphabet cannot spell
  std::vector<std::pair<std::string, int32_t>> unspelled_tokens;  ///< those, as written
  std::vector<int32_t> prefix_ids;  ///< post-processor: before the text
  std::vector<int32_t> suffix_ids;  ///< post-processor: after it
};

/// Parses the text of a tokenizer.json. Throws Error{kInvalidArgument} for a malformed file and
/// Error{kUnimplemented} naming any part that is not supported; nothing is ignored. Limits: 2^21
/// tokens of at most 4096 bytes, ids below 2^22, 2^22 merges, 2^16 added tokens of 512 bytes.
TokenizerSpec parse_tokenizer_json(std::string_view text);

}  // namespace nibble
