#pragma once

#include <cstdint>
#include <vector>

#include "core/ops/backend.h"
#include "core/ops/numerics.h"
#include "rollout/engine/step_runner.h"

namespace nibble {

/// How an engine uses the GPU.
struct CudaEngineOptions {
  Numerics numerics = Numerics::kFast;
  /// Batch sizes that decoding steps are captured for, as CUDA graphs; a step is filled up to the
  /// next one. Empty: nothing is captured.
  std::vector<int64_t> graph_batches;
  /// Whose parts all compute the same plans; the group moves bytes on the GPU and outlives the
  /// runner.
  StepRanks ranks;
};

/// Of the GPU's memory; zeros in a build without CUDA.
RunnerMemory cuda_engine_memory(const ModelSpec& spec, const EngineConfig& config);

/// 1, 2, 4, 8, then every 8 to `most`.
std::vector<int64_t> default_graph_batches(int64_t most);

/// A runner on the process's GPU: BF16 cache and activations, draws on the GPU. Its steps run on a
/// stream of their own. Steps that only decode replay a CUDA graph where one was captured; graphs
/// are captured at the first set_weights() and survive later ones. `backend` is a CUDA one and must
/// outlive the result, like the arguments of the returned factory. Throws Error{kUnimplemented} in
/// a build without CUDA.
StepRunnerFactory cuda_step_runner(const ops::Backend& backend, CudaEngineOptions options);

}  // namespace nibble
