#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "core/ops/backend.h"
#include "core/spec/model_config.h"
#include "trainer/batching.h"

namespace nibble {

/// R3, rollout routing replay: the experts that the rollout chose for a micro-batch's tokens, in
/// the form that the tape takes in place of its own choice (TapeInputs::replay): for each MoE layer
/// int32 [T, k] on the backend's device. The router learns nevertheless: its probabilities are
/// computed anew for the experts that are given. Throws Error{kInvalidArgument} if routes are
/// missing, of another shape than the model's, or name an expert that is not there, or one twice.
std::vector<at::Tensor> replay_of(const MicroBatch& batch, const ModelConfig& config,
                                  const ops::Backend& backend);

/// How tokens are spread over the experts of a batch's layers.
struct ExpertLoad {
  double busiest = 0.0;  ///< tokens of a layer's busiest expert over an even share, mean of layers
  double idle = 0.0;     ///< share of experts without a token, mean of layers
};
ExpertLoad expert_load(const std::vector<int64_t>& counts, int64_t num_experts);
/// Adds a batch's choices to `counts`, [layers, num_experts].
void count_experts(const MicroBatch& batch, int64_t num_experts, std::vector<int64_t>& counts);

}  // namespace nibble
