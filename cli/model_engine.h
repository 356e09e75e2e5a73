#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cli/draft_flags.h"
#include "cli/model_flags.h"
#include "rollout/engine/engine.h"
#include "rollout/engine/step_runner.h"

namespace nibble {

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
///   drafts  what guesses besides look-up
std::unique_ptr<Engine> make_engine(const LoadedModel& model, const ModelFlags& flags,
                                    EngineConfig config, const Drafts& drafts = {});

}  // namespace nibble
