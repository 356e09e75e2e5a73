#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "core/spec/model_config.h"
#include "core/spec/parameters.h"
#include "core/spec/quantization.h"
#include "weight_sync/manifest.h"

namespace nibble {

/// A model as it is stored and sent; weights need not be there.
struct PlannedModel {
  ModelConfig config;
  ParameterTable table;
  QuantizationPlan quantization;
  Manifest manifest;
};

/// Reads config.json of `directory` and nothing else. What is quantized: what the arguments say
/// (`group_size` 0 and empty `targets` say nothing), else the checkpoint, else what `nibble
/// convert` does by default. Throws Error{kInvalidArgument} naming the flag or file at fault.
PlannedModel plan_model(const std::filesystem::path& directory, int64_t group_size,
                        const std::string& targets);

}  // namespace nibble
