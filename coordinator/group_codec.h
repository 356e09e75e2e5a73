#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "coordinator/worker_client.h"

namespace nibble {

namespace v1 {
class GroupSummary;
}

/// A whole group as an engine reports it, and as checkpoints keep it. `address`: of the engine that
/// has its samples.
GroupResult decode_group(const v1::GroupSummary& message, const std::string& address);
/// As bytes of that message.
std::string encode_group(const GroupResult& group);
/// Nothing if they are not of one.
std::optional<GroupResult> decode_group(std::string_view bytes);

}  // namespace nibble
