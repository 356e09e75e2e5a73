#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "core/comm/process_group.h"
#include "core/ops/weight_source.h"
#include "rollout/engine/rank_message.h"
#include "rollout/engine/step_runner.h"

namespace nibble {

/// What a rank that follows needs.
struct FollowerParts {
  /// Makes this rank's part of a runner.
  std::function<std::unique_ptr<StepRunner>(const RunnerSizes&)> make_runner;
  /// This rank's weights of a version; may wait for them.
  std::function<std::shared_ptr<const ops::WeightSource>(int64_t version)> weights;
};

/// Does what the first rank (RankLeader) says until it ends. Throws Error{kUnavailable} if it is
/// gone, Error{kDataLoss} for an order that is none, and what its own part throws.
void follow_leader(ProcessGroup& control, const FollowerParts& parts);

}  // namespace nibble
