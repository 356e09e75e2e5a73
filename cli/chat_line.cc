#include "cli/chat_line.h"

#include "core/base/fail.h"

namespace nibble {

ChatLine::ChatLine(const OrderedJson& line, bool default_generation_prompt,
                   const std::string& where)
    : variables_(line) {
  if (!line["messages"].is_array()) {
    fail(ErrorCode::kInvalidArgument, "{}: 'messages' is not an array", where);
  }
  for (const char* key : {"messages", "tools", "add_generation_prompt"}) variables_.erase(key);
  request_.messages = &line["messages"];
  if (line.contains("tools") && !line["tools"].is_null()) request_.tools = &line["tools"];
  request_.variables = &variables_;
  request_.add_generation_prompt = default_generation_prompt;
  if (!line.contains("add_generation_prompt")) return;
  if (!line["add_generation_prompt"].is_boolean()) {
    fail(ErrorCode::kInvalidArgument, "{}: 'add_generation_prompt' must be true or false", where);
  }
  request_.add_generation_prompt = line["add_generation_prompt"].get<bool>();
}

}  // namespace nibble
