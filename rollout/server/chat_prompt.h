#pragma once

#include <cstdint>
#include <vector>

#include "rollout/server/request_fields.h"
#include "rollout/server/served_model.h"

namespace nibble {

/// The prompt of a chat: `messages`, `tools`, `tool_choice`, `add_generation_prompt` and the
/// template's own variables (`chat_template_kwargs`) through the model's chat template. Contents in
/// parts are joined, a tool call's arguments are parsed, as templates expect it. Throws
/// RequestError naming the field at fault.
std::vector<int32_t> encode_chat_prompt(const RequestFields& fields, const ServedModel& model);

}  // namespace nibble
