#pragma once

#include <string>

#include "core/base/json.h"
#include "core/tokenizer/chat_template.h"

namespace nibble {

/// A chat of a JSON line: "messages", "tools", "add_generation_prompt"; every other key is a
/// variable of the template. The request borrows from this and from the line.
class ChatLine {
 public:
  /// Throws Error{kInvalidArgument} with `where` and the key for a wrong type.
  ChatLine(const OrderedJson& line, bool default_generation_prompt, const std::string& where);
  ChatLine(const ChatLine&) = delete;
  ChatLine& operator=(const ChatLine&) = delete;
  const ChatRequest& request() const { return request_; }

 private:
  OrderedJson variables_;
  ChatRequest request_;
};

}  // namespace nibble
