#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/checkpoint/quantization_config.h"
#include "core/checkpoint/safetensors.h"
#include "core/spec/model_config.h"
#include "core/spec/quantization.h"

namespace nibble {

/// What `nibble inspect` says about a checkpoint of any kind.
struct CheckpointSummary {
  std::filesystem::path path;
  std::string format;  ///< "huggingface" or "training"
  ModelConfig model;
  int64_t num_parameters = 0;       ///< trainable elements; tied embeddings count once
  int64_t num_quantized = 0;        ///< of those, in how many elements are quantized matrices
  int64_t num_tensors = 0;          ///< as stored
  int64_t num_bytes = 0;            ///< of all tensors
  std::vector<std::string> dtypes;  ///< of the stored tensors, e.g. "BF16"
  std::optional<QuantizationConfig> quantization;
  std::string
      weights_sha256;  ///< see WeightsDigest; the same for a training checkpoint and its export
  std::optional<std::string> state_sha256;  ///< of optimizer and loop, if the format has them
  std::optional<int64_t> weight_version;    ///< publication, likewise
  std::optional<int64_t> step;              ///< rollout step, likewise
};

/// Reads a Hugging Face directory, BF16 or INT4, and hashes its weights. Throws Error naming a
/// parameter that is missing or misshapen.
CheckpointSummary summarize_hf_directory(const std::filesystem::path& path);

/// Reads a training checkpoint, packs its masters as they are served and hashes them, and hashes
/// the training state. Errors as in CheckpointReader.
CheckpointSummary summarize_train_checkpoint(const std::filesystem::path& path);

// Parts of both.
void count_parameters(CheckpointSummary& summary, const ParameterTable& table,
                      const QuantizationPlan& plan);
void count_tensors(CheckpointSummary& summary, const std::vector<TensorInfo>& tensors);

/// Refuses a run directory (Error{kInvalidArgument}) with the name of its newest checkpoint.
void refuse_run_directory(const std::filesystem::path& path);

}  // namespace nibble
