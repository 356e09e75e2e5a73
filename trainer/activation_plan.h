#pragma once

#include <cstdint>

#include "core/base/device_memory.h"
#include "core/models/recompute.h"
#include "core/spec/mesh.h"
#include "core/spec/model_config.h"

namespace nibble {

/// One micro-batch on one rank.
struct ActivationLoad {
  int64_t tokens = 0;   ///< computed
  int64_t targets = 0;  ///< of them predicted
  Recompute recompute = Recompute::kNone;
  DeviceKind device = DeviceKind::kCpu;
  int64_t expert_skew = 1;  ///< rows that one of several expert ranks gets, over its even part
};

/// Bytes of tensors at the worst moment of a forward and backward pass (core/ops): what the tape
/// keeps, and beside it the head's logits, or one layer's gradients. With expert ranks each is
/// taken to get twice its even part of the rows at most.
///   own  rank_config(): sizes of one tensor rank
int64_t peak_activation_bytes(const ModelConfig& whole, const ModelConfig& own, const Mesh& mesh,
                              const ActivationLoad& load);
/// What the tape keeps of the largest layer if nothing is dropped; arguments as above.
int64_t largest_layer_bytes(const ModelConfig& whole, const ModelConfig& own, const Mesh& mesh,
                            const ActivationLoad& load);

/// The same of a forward pass without a tape, which keeps one layer at a time.
int64_t forward_activation_bytes(const ModelConfig& whole, const ModelConfig& own, const Mesh& mesh,
                                 const ActivationLoad& load);

}  // namespace nibble
