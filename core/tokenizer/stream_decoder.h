#pragma once

#include <cstdint>
#include <string>

#include "core/tokenizer/tokenizer.h"

namespace nibble {

/// Decodes tokens as they are generated: whole UTF-8 characters only, U+FFFD for every maximal
/// ill-formed part as soon as it is certain. All push() and finish() results joined equal
/// Tokenizer::decode of all ids. One thread; borrows the tokenizer, which must outlive it.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, DecodeOptions options = {})
      : tokenizer_(tokenizer), options_(options) {}

  /// The text that becomes certain with this token; often empty inside a character. Errors as
  /// in Tokenizer::decode.
  std::string push(int32_t id);

  /// The rest: U+FFFD if the stream ended inside a character. Ready for a new stream afterwards.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  DecodeOptions options_;
  std::string pending_;  // an incomplete character: at most 3 bytes between calls
};

}  // namespace nibble
