#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/spec/model_config.h"

namespace nibble {

/// What a parameter is for. Only attention, mlp and expert matrices can be quantized.
enum class ParameterRole {
  kEmbedding,
  kNorm,
  kAttention,
  kMlp,
  kRouter,
  kExpert,
  kLmHead,
  kLoraA,  ///< [rank, in] of an adapter (LoraShape)
  kLoraB,  ///< [out, rank]
};

/// One parameter under its Hugging Face name. A vector (norm) has rows = 1.
struct ParameterSpec {
  std::string module;  ///< e.g. "model.layers.0.self_attn.q_proj"; the tensor is module + ".weight"
  ParameterRole role = ParameterRole::kNorm;
  int64_t rows = 0;    ///< output features
  int64_t cols = 0;    ///< input features
  int64_t layer = -1;  ///< decoder layer, or -1
  int64_t expert = -1;
  bool is_draft = false;   ///< of a draft model that is published with the model
  bool is_frozen = false;  ///< no version differs in it: of a draft model, or beside adapters

  std::string name() const { return module + ".weight"; }
  int64_t num_elements() const { return rows * cols; }
  bool is_vector() const { return role == ParameterRole::kNorm; }
};

/// Index of every parameter of one decoder layer in model_parameters(); -1 where it has none.
struct LayerParameters {
  int64_t input_norm = -1;
  int64_t q = -1, k = -1, v = -1, o = -1;
  int64_t q_norm = -1, k_norm = -1;
  int64_t post_norm = -1;
  int64_t gate = -1, up = -1, down = -1;  ///< dense MLP
  int64_t router = -1;
  int64_t first_expert = -1;  ///< experts e: gate, up, down at first_expert + 3 e + {0, 1, 2}
};

/// What makes a draft head's input of a token's embedding e and a hidden state h of the model that
/// it guesses for (MTP, EAGLE): projection [norm(e); norm(h)]. -1 where a model has none.
struct HiddenJoin {
  int64_t embedding_norm = -1;
  int64_t hidden_norm = -1;
  int64_t projection = -1;  ///< [hidden, 2 hidden]
  bool exists() const { return projection >= 0; }
};

/// Where the two matrices of an adapter are; -1 where there is none.
struct AdapterParameters {
  int64_t a = -1;
  int64_t b = -1;
  bool exists() const { return a >= 0; }
};

/// All parameters in their canonical order (embedding, join, layers, final norm, head, adapters)
/// and where each layer's are. Tied embeddings have no separate head: lm_head == embedding. A
/// critic's is its value head, [1, hidden].
struct ParameterTable {
  std::vector<ParameterSpec> parameters;
  std::vector<LayerParameters> layers;
  int64_t embedding = -1;
  HiddenJoin join;
  int64_t final_norm = -1;
  int64_t lm_head = -1;
  int64_t num_experts = 0;                  ///< of a layer that has them
  std::vector<AdapterParameters> adapters;  ///< by parameter; empty without adapters

  /// Norms of single heads, rather than of the residual stream.
  bool is_head_norm(int64_t index) const;
  /// Attention's and a dense MLP's last matrix: its inputs are what the layer's others made.
  bool is_output_projection(int64_t index) const;
  /// The adapter beside a matrix.
  AdapterParameters adapter_of(int64_t index) const {
    return adapters.empty() ? AdapterParameters() : adapters[static_cast<size_t>(index)];
  }
  const ParameterSpec& at(int64_t index) const { return parameters[static_cast<size_t>(index)]; }
  int64_t size() const { return static_cast<int64_t>(parameters.size()); }
};

/// With config.lora every module M that it names has "M.lora_A" and "M.lora_B" behind the model's
/// own parameters, whose places and names are as without, in the order of their matrices and with
/// their layers; all others are frozen.
ParameterTable model_parameters(const ModelConfig& config);

}  // namespace nibble
