#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "rollout/engine/engine_config.h"
#include "rollout/engine/step_plan.h"

namespace nibble {

/// What the first rank of an engine tells the others.
enum class RankOrder : int64_t {
  kMake,     ///< a runner: its sizes and CUDA graphs
  kWeights,  ///< a runner uses weights of a version from now on
  kRelease,  ///< a runner lets go of its weights, which are about to be overwritten
  kStep,     ///< a runner computes a plan
  kDrop,     ///< a runner ends
  kEnd,      ///< nothing will follow
};

/// Goes before each message's body. The same binary reads it that wrote it.
struct RankHeader {
  RankOrder order = RankOrder::kEnd;
  int64_t runner = 0;      ///< number of the runner that the order is for
  int64_t version = 0;     ///< of kWeights
  int64_t body_bytes = 0;  ///< of kMake and kStep
};

/// Body of kMake.
struct RunnerSizes {
  EngineConfig config;
  std::vector<int64_t> graph_batches;
};
std::vector<std::byte> encode_runner_sizes(const RunnerSizes& sizes);
/// Throws Error{kDataLoss} for anything that encode_runner_sizes() does not give; the next too.
RunnerSizes decode_runner_sizes(std::span<const std::byte> bytes);

/// Body of kStep: a plan's tokens and the rows that are drawn from, and new entries of the table of
/// slots.
struct StepOrder {
  StepPlan plan;
  std::vector<std::pair<int64_t, int32_t>> slot_changes;  ///< index in the slot table, slot
};
std::vector<std::byte> encode_step(const StepPlan& plan,
                                   std::span<const std::pair<int64_t, int32_t>> slot_changes);
void decode_step(std::span<const std::byte> bytes, StepOrder& order);

}  // namespace nibble
