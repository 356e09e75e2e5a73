#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/json.h"
#include "core/spec/lora_shape.h"

namespace nibble {

enum class Architecture { kLlama, kQwen3, kQwen3Moe };
std::string_view architecture_name(Architecture architecture);

/// Rotary embedding: plain, or Llama 3's frequency scaling.
struct RopeConfig {
  double theta = 10000.0;
  bool llama3 = false;
  double factor = 1.0;  ///< llama3 only, like the next three
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  double original_max_position = 8192;
};

/// Routed experts of the layers that have them.
struct MoeConfig {
  int64_t num_experts = 0;
  int64_t top_k = 0;
  int64_t intermediate = 0;  ///< of one expert
  bool norm_topk_prob = false;
};

/// What a checkpoint's config.json says about a decoder we implement. Sizes in elements.
struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  int64_t vocab = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;  ///< of dense layers
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position = 0;
  float rms_eps = 1e-6f;
  bool tied_embeddings = false;
  int64_t pad_token = -1;  ///< its embedding row learns nothing from lookups, as in Transformers
  bool qk_norm = false;    ///< RMS norm of every query and key head before RoPE (Qwen3)
  RopeConfig rope;
  MoeConfig moe;
  std::vector<bool> layer_is_moe;  ///< one per layer
  bool joins_hidden = false;       ///< a draft head: its input is more than tokens (HiddenJoin)
  bool gives_values = false;       ///< a critic: value_model()
  std::optional<LoraShape> lora;   ///< adapters, beside which all else is frozen

  int64_t q_rows() const { return num_heads * head_dim; }
  int64_t kv_rows() const { return num_kv_heads * head_dim; }
  int64_t num_moe_layers() const;
};

/// Reads config.json of Llama, Qwen3 and Qwen3-MoE, in the layouts of Transformers 4 and 5.
/// A field that would change the result and that we do not implement (other rope kinds, sliding
/// window, attention bias, dropout, another activation, ...) and any unknown field is refused:
/// Error{kInvalidArgument} naming `what` and the field. Unsupported model types: kUnimplemented.
ModelConfig parse_model_config(const Json& config, const std::string& what);

/// The decoder as a critic: its head has one row, "score", and is not tied to the embedding. The
/// name is that of Transformers' classification heads.
ModelConfig value_model(ModelConfig config);

/// Name in config.json of a field, other than sizes of weights, in which the two compute something
/// else of equal weights and inputs; nothing if there is none.
std::optional<std::string_view> computed_difference(const ModelConfig& a, const ModelConfig& b);

}  // namespace nibble
