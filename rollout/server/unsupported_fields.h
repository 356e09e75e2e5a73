#pragma once

#include "rollout/server/request_fields.h"

namespace nibble {

/// Refuses fields of OpenAI's API, and of servers like it, that would change the result and are not
/// supported, unless they have the value that changes nothing. Throws RequestError 400 naming the
/// field.
void refuse_unsupported_fields(const RequestFields& fields);

}  // namespace nibble
