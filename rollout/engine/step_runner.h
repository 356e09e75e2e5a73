#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "core/kernels/parallel.h"
#include "core/models/activation_type.h"
#include "core/models/decoder.h"
#include "core/models/step_ranks.h"
#include "core/ops/weight_source.h"
#include "rollout/engine/engine_config.h"
#include "rollout/engine/step_plan.h"

namespace nibble {

/// Computes the steps that a scheduler plans, on one device or with ranks on others: the decoder
/// over a KV cache, the head, the draws. One thread.
class StepRunner {
 public:
  virtual ~StepRunner() = default;
  /// Uses these weights from the next step on. They must be where the runner computes, and live
  /// until the next call. Other ranks of the runner use theirs of `version`.
  virtual void set_weights(const ops::WeightSource& weights, int64_t version) = 0;
  /// The weights are about to be overwritten: the next call is set_weights(). Other ranks of the
  /// runner let go of theirs.
  virtual void release_weights() {}
  /// Computes the plan's tokens and fills in its draws and hidden states.
  ///   slot_table  cache slots that StepPlan::first counts into, [max_running, max_positions]
  virtual void run(StepPlan& plan, const int32_t* slot_table) = 0;
  /// Chosen experts of MoE layer `i` in the last step: int32 [T, k] on the host.
  virtual std::span<const int32_t> routes(int64_t moe_layer) const = 0;
};

/// What a runner takes of its device's memory, weights apart.
struct RunnerMemory {
  int64_t fixed_bytes = 0;     ///< activations, logits, staging
  int64_t bytes_per_slot = 0;  ///< a token in the cache
};
/// Of a runner on the CPU, on each of its ranks; the table of slots too.
RunnerMemory cpu_runner_memory(const ModelSpec& spec, const EngineConfig& config);

/// On the CPU. `spec`, `parallel` and the group of `ranks` must outlive the result. Of several
/// ranks each runs the same plans; the first has the draws.
std::unique_ptr<StepRunner> make_cpu_step_runner(
    const ModelSpec& spec, const EngineConfig& config, const kernels::Parallel& parallel,
    ActivationType activations = ActivationType::kFloat32, StepRanks ranks = {});

/// Makes the runner of an engine: its arguments are the engine's own and outlive the runner.
using StepRunnerFactory =
    std::function<std::unique_ptr<StepRunner>(const ModelSpec&, const EngineConfig&)>;

}  // namespace nibble
