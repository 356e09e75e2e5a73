#pragma once

#include "rollout/rollout_worker.h"

namespace nibble {

namespace v1 {
class GenerateRequest;
class GenerateResponse;
}  // namespace v1

/// What to generate and what came of it, as they travel. Decoding throws Error{kInvalidArgument}
/// for a prompt or label that is no JSON.
RolloutJob decode_job(const v1::GenerateRequest& request);
/// Samples must lie together by prompt.
void encode_outcome(const RolloutOutcome& outcome, v1::GenerateResponse& response);

}  // namespace nibble
