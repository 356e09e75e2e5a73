#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "core/ops/backend.h"
#include "rollout/engine/model_drafter.h"

namespace nibble {

/// A draft model in memory. Not movable: the weights borrow the specification.
struct DraftModel {
  ModelSpec spec;
  std::unique_ptr<ResidentWeights> weights;
  explicit DraftModel(ModelSpec model_spec) : spec(std::move(model_spec)) {}
  DraftModel(const DraftModel&) = delete;
  DraftModel& operator=(const DraftModel&) = delete;
};

/// Whether the draft model of a Hugging Face directory may guess for the model of another one.
/// Throws as check_same_vocabulary(), naming `what` (the flag or key that names the draft).
void check_draft_model(const std::string& what, const std::filesystem::path& draft,
                       const std::filesystem::path& model);

/// check_draft_model(), and the draft model's weights on the CPU, BF16 or INT4 as they are stored.
/// Throws Error naming a tensor that is missing or misshapen.
std::shared_ptr<DraftModel> load_draft_model(const std::string& what,
                                             const std::filesystem::path& draft,
                                             const std::filesystem::path& model);

/// For Engine::set_draft_weights(); they keep the model alive.
std::shared_ptr<const ops::WeightSource> draft_weights(std::shared_ptr<const DraftModel> draft);

/// Beside an engine of `config` on the CPU. `parallel` must outlive the result.
std::unique_ptr<ModelDrafter> make_cpu_drafter(const ModelSpec& draft, const EngineConfig& config,
                                               const kernels::Parallel& parallel,
                                               ActivationType activations);

/// Beside an engine of `config` on the process's GPU, in `fast` numerics whatever the engine's:
/// guesses change nothing. `backend` is a CUDA one and must outlive the result.
std::unique_ptr<ModelDrafter> make_cuda_drafter(const ModelSpec& draft, const EngineConfig& config,
                                                const ops::Backend& backend);
/// Its sizes.
EngineConfig cuda_draft_config(const EngineConfig& config, const ModelSpec& draft);

}  // namespace nibble
