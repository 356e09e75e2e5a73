#pragma once

#include <cstdint>

#include "core/spec/model_config.h"
#include "core/spec/parameters.h"
#include "trainer/trainer.h"

namespace nibble {

/// What one trainer rank takes of a GPU's memory, by the sizes of the parameters alone: for an
/// engine that shares the GPU and plans before either has allocated.
struct TrainerMemory {
  int64_t state_bytes = 0;      ///< masters, moments, held scales, unless offloaded; gradients
  int64_t packed_bytes = 0;     ///< two packings of each plan: one in use, one being made
  int64_t reference_bytes = 0;  ///< BF16; 0 if offloaded
  int64_t ring_bytes = 0;       ///< layers gathered or uploaded, and their gradients
  /// Of one micro-batch on a GPU: an estimate, an upper one but where expert ranks get more than
  /// twice their even part of the rows.
  int64_t activation_bytes = 0;
  int64_t total() const {
    return state_bytes + packed_bytes + reference_bytes + ring_bytes + activation_bytes;
  }
};

/// `config.model` needs its config.json only. Throws Error as parse_model_config().
TrainerMemory plan_trainer_memory(const TrainerConfig& config, const Mesh& mesh, int rank);

}  // namespace nibble
