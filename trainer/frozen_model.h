#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "core/kernels/rope.h"
#include "core/models/decoder.h"
#include "core/ops/backend.h"
#include "trainer/parallel/gathered_weights.h"

namespace nibble {

/// What a pass runs on. Borrows the specification and the weights.
struct TapeModel {
  const ModelSpec& spec;
  GatheredWeights& weights;
  std::shared_ptr<const kernels::RopeTable> rope;  // shared: with the tape
};

/// A model in BF16 that is asked for log-probabilities and never trained: the KL's reference, or a
/// teacher. Trainer ranks share it as they share their own.
class FrozenModel {
 public:
  /// Reads this rank's rows of a Hugging Face directory, BF16 or quantized. `groups` and `backend`
  /// must outlive this.
  ///   home           where they stay
  ///   max_positions  longest sequence
  FrozenModel(const std::filesystem::path& directory, ModelSpec spec, const MeshGroups& groups,
              const ops::Backend& backend, ShardHome home, int64_t max_positions);

  TapeModel model() { return {spec_, weights_, rope_}; }

 private:
  const ModelSpec spec_;
  const std::shared_ptr<const kernels::RopeTable> rope_;  // shared: TapeModel's
  GatheredWeights weights_;
};

}  // namespace nibble
