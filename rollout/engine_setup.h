#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "core/models/decoder.h"
#include "core/spec/joint_parameters.h"
#include "rollout/draft_head.h"
#include "rollout/engine/engine.h"
#include "rollout/head_coach.h"
#include "rollout/rollout_worker.h"

namespace nibble {

/// Of a Hugging Face directory, and of adapters that a job trains beside its weights. Throws Error
/// naming what is wrong with it.
ModelSpec model_spec(const std::filesystem::path& directory,
                     const std::optional<LoraShape>& lora = {});

/// Of the draft model that is published with the model; nothing: none. Throws Error naming
/// rollout.draft_model if it cannot guess for the model.
std::optional<ModelSpec> draft_model_spec(const RolloutWorkerOptions& options);

/// What the job publishes: `spec`'s parameters, and the draft model's.
JointParameters job_parameters(const RolloutWorkerOptions& options, const ModelSpec& spec);

/// Sizes of a job's engine: on a GPU with the KV slots that fit beside all else (`draft` included;
/// null: none), on several ranks on each of them: all call it then. Throws
/// Error{kResourceExhausted} saying what takes how much where that is too little.
EngineConfig plan_engine(const RolloutWorkerOptions& options, const ModelSpec& spec,
                         const ModelSpec* draft);

/// What one rank of a job's engine takes of memory; a draft model's cache and a head come on top.
struct EngineRankMemory {
  int64_t weight_bytes = 0;  ///< of one version
  int64_t frozen_bytes = 0;  ///< of them: a shadow takes as much again but for these
  int64_t kv_bytes = 0;      ///< of rollout.kv_tokens; 0 where they are what is left of a GPU
  int64_t kv_bytes_per_token = 0;
  int64_t buffer_bytes = 0;  ///< activations, logits, the table of cache slots
};
EngineRankMemory engine_rank_memory(const RolloutConfig& rollout, const ModelSpec& spec,
                                    const JointParameters& published, DeviceKind device, int rank);

/// Of `buffers` of an engine's versions, which share what is frozen.
constexpr int64_t buffers_bytes(int64_t buffers, int64_t weight_bytes, int64_t frozen_bytes) {
  return buffers == 0 ? 0 : frozen_bytes + buffers * (weight_bytes - frozen_bytes);
}

/// Makes this process's runner, or this rank's part of one. `options` outlives the result.
StepRunnerFactory engine_runner(const RolloutWorkerOptions& options,
                                std::vector<int64_t> graph_batches);

/// rollout.draft_head; null: none. Throws Error naming what is wrong with it.
std::shared_ptr<const DraftHead> load_job_head(const RolloutWorkerOptions& options,
                                               const ModelSpec& spec);

/// A job's engine, with what guesses for it, on the calling thread; of several ranks on the first.
/// Everything outlives it; `draft`, `head` and `coach` may be null.
std::unique_ptr<Engine> make_job_engine(const RolloutWorkerOptions& options, const ModelSpec& spec,
                                        const ModelSpec* draft,
                                        const std::shared_ptr<const DraftHead>& head,
                                        HeadCoach* coach);

}  // namespace nibble
