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

/// Computes this process's part of steps, where the model's weights are. `model` outlives what is
/// made of it; the next two likewise.
///   graph_batches  steps of so many tokens get a CUDA graph; empty: none do
StepRunnerFactory own_runner_factory(const LoadedModel& model, const ModelFlags& flags,
                                     std::vector<int64_t> graph_batches);

/// Computes steps, with the model's other ranks where it has some.
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
