#pragma once

#include <memory>
#include <vector>

#include "core/kernels/rope.h"
#include "core/spec/model_config.h"

namespace nibble {

/// Owns the cosines and sines of positions [0, num_positions), as Transformers computes them in
/// float32 (llama3 scaling included; shared oracles, models/README.md).
std::shared_ptr<const kernels::RopeTable> make_rope_table(const RopeConfig& rope, int64_t head_dim,
                                                          int64_t num_positions);

}  // namespace nibble
