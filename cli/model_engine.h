#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "cli/model_flags.h"
#include "rollout/engine/engine.h"
#include "rollout/engine/step_runner.h"

namespace nibble {

/// Whether tokens are guessed by look-up as well, where a draft model guesses.
enum class LookUp { kBeside, kNever };

/// Computes steps where the model's weights are. `model` outlives what is made of it.
///   graph_batches  steps of so many tokens get a CUDA graph; empty: none do
StepRunnerFactory step_runner_factory(const LoadedModel& model, const ModelFlags& flags,
                                      std::vector<int64_t> graph_batches);

/// An engine that serves the model as version 1. On a GPU its logits and CUDA graphs cover steps of
/// all running sequences, and of their guesses. Errors as of Engine.
///   draft_model  directory of a model that guesses beside look-up; empty: none
std::unique_ptr<Engine> make_engine(const LoadedModel& model, const ModelFlags& flags,
                                    EngineConfig config,
                                    const std::filesystem::path& draft_model = {},
                                    LookUp look_up = LookUp::kBeside);

/// Throws Error{kInvalidArgument} if there is a --draft-model and nothing to guess.
void check_draft_flags(const std::filesystem::path& draft_model, int64_t max_draft_tokens);

}  // namespace nibble
