#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/tokenizer/chat_template.h"
#include "core/tokenizer/tokenizer.h"

namespace nibble {

/// Prompts as token ids: the same in training, in evaluation and offline. Borrows the tokenizer.
/// Immutable; any thread.
class PromptEncoder {
 public:
  /// `source` names the tokenizer in messages: its directory.
  PromptEncoder(const Tokenizer& tokenizer, std::string source);

  /// A string as it is, with the tokenizer's special tokens; a list of chat messages through the
  /// model's chat template, up to where the answer begins. Throws Error{kInvalidArgument}, also
  /// for a chat if there is no template.
  std::vector<int32_t> encode(const Json& content) const;
  /// A chat with tools and template variables, as `request` says.
  std::vector<int32_t> encode_chat(const ChatRequest& request) const;

 private:
  const Tokenizer& tokenizer_;
  const std::string source_;
  std::optional<ChatTemplate> chat_template_;
};

}  // namespace nibble
