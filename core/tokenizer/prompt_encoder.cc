#include "core/tokenizer/prompt_encoder.h"

#include "core/base/context.h"
#include "core/base/fail.h"

namespace nibble {

PromptEncoder::PromptEncoder(const Tokenizer& tokenizer, std::string source)
    : tokenizer_(tokenizer), source_(std::move(source)) {
  if (tokenizer.chat_templates().contains("default")) {
    with_context(source_, [&] { chat_template_.emplace(ChatTemplate::of(tokenizer)); });
  }
}

std::vector<int32_t> PromptEncoder::encode(const Json& content) const {
  if (content.is_string()) {
    return tokenizer_.encode(content.get<std::string>(), {.add_special = true});
  }
  const OrderedJson messages = OrderedJson::parse(content.dump());
  return encode_chat({.messages = &messages, .add_generation_prompt = true});
}

std::vector<int32_t> PromptEncoder::encode_chat(const ChatRequest& request) const {
  if (!chat_template_) {
    fail(ErrorCode::kInvalidArgument,
         "the prompt is a chat, but '{}' has no chat template; give plain strings instead",
         source_);
  }
  return with_context(source_, [&] { return tokenizer_.encode(chat_template_->render(request)); });
}

}  // namespace nibble
