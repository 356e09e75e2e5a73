#pragma once

#include "rollout/rollout_group.h"

namespace nibble {

namespace v1 {
class SubmitRequest;
class CollectResponse;
}  // namespace v1

/// What to generate and what came of it, as they travel. Decoding throws Error{kInvalidArgument}
/// for a prompt or label that is no JSON.
RolloutJob decode_job(const v1::SubmitRequest& request);
void encode_outcome(const RolloutOutcome& outcome, v1::CollectResponse& response);

}  // namespace nibble
