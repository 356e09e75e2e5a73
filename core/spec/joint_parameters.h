#pragma once

#include <cstdint>
#include <filesystem>

#include "core/spec/parameters.h"
#include "core/spec/quantization.h"

namespace nibble {

/// A small model that guesses for a larger one, and is published with it.
struct DraftPart {
  std::filesystem::path directory;  ///< Hugging Face directory
  ModelConfig config;
  QuantizationPlan plan;  ///< how it is served, over model_parameters(config)
};

/// What is published: a model's parameters in their places, and behind them a draft model's, if
/// there is one, under their names after "draft.".
struct JointParameters {
  ParameterTable table;
  QuantizationPlan plan;
};

/// `draft` may be null. Both plans quantize alike where both quantize (draft_plan).
JointParameters join_parameters(const ParameterTable& table, const QuantizationPlan& plan,
                                const DraftPart* draft);

/// How a draft model is served beside a model of plan `serve`, in whose format all that is
/// published is: as `stored` says, if anything of it is quantized; else like a fresh conversion in
/// the model's groups; not quantized beside a model that is not, nor where such groups do not
/// divide its matrices. Throws Error{kInvalidArgument} naming both group sizes if they differ.
QuantizationPlan draft_plan(const ModelConfig& draft, const QuantizationPlan& stored,
                            const QuantizationPlan& serve);

}  // namespace nibble
