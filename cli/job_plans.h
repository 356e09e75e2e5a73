#pragma once

#include <filesystem>
#include <optional>

#include "cli/run_config.h"
#include "core/base/json.h"
#include "core/spec/joint_parameters.h"
#include "core/spec/model_config.h"
#include "core/spec/quantization.h"

namespace nibble {

/// Of model.int4 or model.path: whose quantization_config says what is quantized.
std::filesystem::path quantization_source(const RunConfig& config);

/// config.json of a model that the job names. Weights must be beside it, unless it starts at
/// random. Throws Error naming what is wrong with it, like the next two.
Json model_json(const RunConfig& config, const std::filesystem::path& directory);
ModelConfig model_of(const RunConfig& config, const std::filesystem::path& directory);

/// Whose weights lie frozen beside adapters: model.int4's where they are quantized by `plan`, codes
/// and scales as they are; else model.path's, rounded to nearest if `plan` says so.
std::filesystem::path frozen_base(const RunConfig& config, const QuantizationPlan& plan);

/// What is quantized in the trainer's forward pass and in what is served: of all parameters, those
/// of adapters too.
struct JobPlans {
  QuantizationPlan train;
  QuantizationPlan serve;
  std::optional<DraftPart> draft;  ///< rollout.draft_model, served beside it
};
/// Reads the config.json of every model that the job names. Throws Error{kInvalidArgument} where
/// they are not of one model, or a draft model cannot be served beside it.
JobPlans job_plans(const RunConfig& config);

}  // namespace nibble
