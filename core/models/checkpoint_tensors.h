#pragma once

#include <cstdint>
#include <vector>

#include "core/checkpoint/hf_directory.h"
#include "core/spec/quantization.h"

namespace nibble {

/// A parameter's shape in a checkpoint: norms are vectors.
std::vector<int64_t> stored_shape(const ParameterSpec& parameter);

/// Which element types check_checkpoint_tensors accepts.
enum class StoredTypes {
  kLoadable,  ///< BF16, and packed INT4 or INT8: what a model can be loaded from
  kAny,       ///< whatever a file may hold
};

/// Checks, from the headers alone, that a checkpoint holds the model that its config.json
/// describes: every parameter, stored as `plan` says, and nothing else. A tensor without a place
/// (a bias, a layer too many, a norm of another architecture) would change the model if it were
/// ignored. A stored copy of tied embeddings and RoPE frequencies, which every loader ignores, are
/// no loss. Throws Error{kNotFound} or Error{kInvalidArgument} naming directory and tensor.
void check_checkpoint_tensors(const HfDirectory& directory, const ParameterTable& table,
                              const QuantizationPlan& plan,
                              StoredTypes types = StoredTypes::kLoadable);

}  // namespace nibble
