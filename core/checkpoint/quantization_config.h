#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/base/json.h"

namespace nibble {

/// The `quantization_config` of a checkpoint: the one source for what is quantized and how.
struct QuantizationConfig {
  int bits = 4;
  int64_t group_size = 32;
  /// Full module names, or anchored patterns "re:^...$", of Linears that stay in BF16.
  std::vector<std::string> ignore;
  /// Whether a module (e.g. "model.layers.0.mlp.gate_proj") is in `ignore`: exact, or `re:`
  /// matched from the start of the name as compressed-tensors does.
  bool ignores(const std::string& module) const;
  friend bool operator==(const QuantizationConfig&, const QuantizationConfig&) = default;
};

/// Throws Error{kInvalidArgument} naming an entry of an ignore list that is too long or, after
/// "re:", no regular expression.
void check_ignore_entry(const std::string& entry);

/// Reads compressed-tensors "pack-quantized", symmetric, group-wise INT4 or INT8. nullopt if the
/// model config has none. Throws Error{kInvalidArgument} naming `what` and the field for every
/// other scheme (asymmetric, activation quantization, act-order indices, other formats).
std::optional<QuantizationConfig> parse_quantization_config(const Json& model_config,
                                                            const std::string& what);

/// The object to store under "quantization_config", equal in meaning to llm-compressor's.
OrderedJson quantization_config_json(const QuantizationConfig& config);

}  // namespace nibble
