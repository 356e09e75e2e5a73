#pragma once

#include <cstdint>
#include <memory>

#include "core/models/decoder.h"
#include "core/ops/weight_source.h"
#include "rollout/engine/drafter.h"

namespace nibble {

/// A drafter that guesses with weights, which are swapped like the engine's: a model of its own
/// (ModelDrafter), or a head on the engine's model (HeadDrafter).
class WeightedDrafter : public Drafter {
 public:
  virtual const ModelSpec& spec() const = 0;
  /// Guesses with these weights from the next round on; for running samples perhaps worse until
  /// they end. Throws Error{kInvalidArgument} if `version` is not higher than the last, or naming
  /// the tensor whose shape is not the specification's.
  virtual void set_weights(std::shared_ptr<const ops::WeightSource> weights, int64_t version) = 0;
  /// Lets go of its weights, which are about to be overwritten; guesses nothing until
  /// set_weights().
  virtual void release_weights() = 0;
  /// The engine serves these from its next step on; null: none, until the next call.
  virtual void set_model_weights(std::shared_ptr<const ops::WeightSource> weights) = 0;
};

}  // namespace nibble
