#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/checkpoint/quantization_config.h"
#include "core/spec/parameters.h"

namespace nibble {

/// Which matrices a fresh quantization takes: routed experts; those and dense MLPs; every Linear
/// of the decoder layers but the router. Embeddings, norms, router and lm_head never.
enum class QuantTargets { kExperts, kMlp, kLinear };
QuantTargets parse_quant_targets(const std::string& text);
/// Experts for models that have them, else every Linear.
QuantTargets default_targets(const ModelConfig& config);

/// How each parameter of a model is stored and multiplied: the scheme, and one flag a parameter.
struct QuantizationPlan {
  QuantizationConfig config;
  std::vector<bool> quantized;  ///< one per ParameterTable entry
  bool any() const;
};

/// The plan for `targets` less the modules that `also_ignore` names (full names or "re:"
/// patterns), with the ignore list that says the same to Transformers, vLLM and SGLang (full
/// names). Throws Error{kInvalidArgument} naming the tensor if its input size is not a multiple of
/// `group_size`, or if only some shards of a fused layer (q/k/v, gate/up, a layer's experts) are
/// left out, and naming an entry of `also_ignore` that matches no target or is no pattern.
QuantizationPlan plan_quantization(const ParameterTable& table, QuantTargets targets, int bits,
                                   int64_t group_size,
                                   const std::vector<std::string>& also_ignore = {});

/// The plan that a checkpoint's quantization_config states. Throws Error{kInvalidArgument} naming
/// the tensor if a group does not divide, or if shards of one fused layer (q/k/v, gate/up) differ.
QuantizationPlan plan_from_config(const ParameterTable& table, const QuantizationConfig& config);

/// A model's config.json with the quantization_config of weights that are stored by `plan`, or
/// none.
OrderedJson served_config(const Json& model_config, const QuantizationPlan& plan);

/// Nothing quantized.
QuantizationPlan plan_bf16(const ParameterTable& table);

}  // namespace nibble
