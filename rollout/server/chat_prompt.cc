#include "rollout/server/chat_prompt.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "core/base/error.h"
#include "rollout/server/request_error.h"

namespace nibble {
namespace {

constexpr size_t kMaxMessages = 4096;

// A list of text parts as one text.
std::string joined_parts(const OrderedJson& parts, const std::string& field) {
  std::string text;
  for (const OrderedJson& part : parts) {
    const bool is_text = part.is_object() && part.contains("type") && part["type"] == "text" &&
                         part.contains("text") && part["text"].is_string();
    if (!is_text) {
      refuse_field(field,
                   "{} must be a string or a list of parts of type text; the model reads "
                   "nothing else",
                   field);
    }
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

void parse_arguments(OrderedJson& calls, const std::string& field) {
  if (!calls.is_array()) refuse_field(field, "{} must be a list", field);
  for (OrderedJson& call : calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) {
      refuse_field(field, "{} must hold objects with a function", field);
    }
    OrderedJson& function = call["function"];
    if (!function.contains("arguments") || !function["arguments"].is_string()) continue;
    try {
      function["arguments"] = parse_ordered_json(
          function["arguments"].get_ref<const std::string&>(), field + ".function.arguments");
    } catch (const Error& error) {
      throw RequestError(400, field, error.what());
    }
  }
}

// A template would pass over a message of a role that it does not know.
void check_role(const std::string& role, const std::string& field) {
  constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user", "assistant",
                                                      "tool"};
  if (std::find(kRoles.begin(), kRoles.end(), role) != kRoles.end()) return;
  refuse_field(field, "{} is '{}'; it must be system, developer, user, assistant or tool", field,
               role.substr(0, 40));
}

OrderedJson checked_messages(const OrderedJson& given) {
  if (!given.is_array() || given.empty() || given.size() > kMaxMessages) {
    refuse_field("messages", "messages must be a list of 1 to {} messages", kMaxMessages);
  }
  OrderedJson messages = given;
  for (size_t i = 0; i < messages.size(); ++i) {
    OrderedJson& message = messages[i];
    const std::string field = fmt::format("messages[{}]", i);
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string()) {
      refuse_field(field, "{} must be an object with a role", field);
    }
    check_role(message["role"].get_ref<const std::string&>(), field + ".role");
    if (message.contains("tool_calls") && !message["tool_calls"].is_null()) {
      parse_arguments(message["tool_calls"], field + ".tool_calls");
    }
    OrderedJson& content = message["content"];  // null if absent, as after a tool call
    if (content.is_array()) {
      content = joined_parts(content, field + ".content");
    } else if (content.is_null() && !message.contains("tool_calls")) {
      refuse_field(field, "{} has no content", field);
    } else if (!content.is_string() && !content.is_null()) {
      refuse_field(field, "{}.content must be a string or a list of text parts", field);
    }
  }
  return messages;
}

// Whether tools go to the template; of a choice that forces a call the engine knows nothing.
bool wants_tools(const RequestFields& fields) {
  const OrderedJson* choice = fields.find("tool_choice");
  const bool may_choose = choice == nullptr || *choice == "auto" || *choice == "none";
  if (!may_choose) {
    refuse_field("tool_choice", "tool_choice must be auto or none: a call cannot be forced");
  }
  return fields.find("tools") != nullptr && !fields.find("tools")->empty() &&
         (choice == nullptr || *choice == "auto");
}

void check_tools(const OrderedJson& tools, const Tokenizer& tokenizer) {
  if (!tools.is_array()) refuse_field("tools", "tools must be a list");
  for (const OrderedJson& tool : tools) {
    if (!tool.is_object()) refuse_field("tools", "tools must hold objects");
  }
  const auto& templates = tokenizer.chat_templates();
  const auto it = templates.find("default");
  if (it != templates.end() && it->second.find("tools") == std::string::npos) {
    refuse_field("tools", "the model's chat template takes no tools");
  }
}

}  // namespace

std::vector<int32_t> encode_chat_prompt(const RequestFields& fields, const ServedModel& model) {
  if (fields.find("messages") == nullptr) refuse_field("messages", "messages is missing");
  const OrderedJson messages = checked_messages(*fields.find("messages"));
  OrderedJson variables = OrderedJson::object();
  if (const OrderedJson* given = fields.find("chat_template_kwargs")) {
    if (!given->is_object()) {
      refuse_field("chat_template_kwargs", "chat_template_kwargs must be an object");
    }
    for (const char* name : {"messages", "tools", "add_generation_prompt"}) {
      if (!given->contains(name)) continue;
      refuse_field("chat_template_kwargs", "chat_template_kwargs has '{}', a field of the request",
                   name);
    }
    variables = *given;
  }
  ChatRequest chat;
  chat.messages = &messages;
  chat.variables = &variables;
  chat.add_generation_prompt = fields.boolean_or("add_generation_prompt", true);
  if (wants_tools(fields)) {
    chat.tools = fields.find("tools");
    check_tools(*chat.tools, *model.tokenizer);
  }
  try {
    return model.encoder->encode_chat(chat);
  } catch (const Error& error) {
    throw RequestError(400, "messages", error.what());
  }
}

}  // namespace nibble
