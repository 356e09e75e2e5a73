#pragma once

#include "core/data/sample.h"

namespace nibble {

namespace v1 {
class SampleGroupMessage;
}

/// Samples as they travel from a rollout worker to a trainer rank.
void encode_group(const SampleGroup& group, v1::SampleGroupMessage& message);

/// Throws Error{kInvalidArgument} if a sample's arrays differ in length.
SampleGroup decode_group(const v1::SampleGroupMessage& message);

}  // namespace nibble
