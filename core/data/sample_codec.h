#pragma once

#include <functional>
#include <vector>

#include "core/data/sample.h"

namespace nibble {

namespace v1 {
class SampleGroupMessage;
}

/// Samples as they travel from a rollout worker to a trainer rank: the group without samples, then
/// each sample in a message of its own, so that messages stay small. `write` says whether to go on.
void encode_group(const SampleGroup& group,
                  const std::function<bool(const v1::SampleGroupMessage&)>& write);

/// Adds the next message to `groups`. Throws Error{kInvalidArgument} if a sample's arrays differ in
/// length, its routes are not those of its tokens, or its group has not come.
void decode_group_part(const v1::SampleGroupMessage& message, std::vector<SampleGroup>& groups);

}  // namespace nibble
