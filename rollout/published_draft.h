#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "core/models/weights.h"
#include "core/ops/weight_source.h"

namespace nibble {

/// A draft model's weights among those that came with the model (JointParameters): all that lie
/// behind the model's `first` parameters. To be read; keeps them alive.
class PublishedDraft final : public ops::WeightSource {
 public:
  PublishedDraft(std::shared_ptr<const ResidentWeights> joint, int64_t first)
      : joint_(std::move(joint)), first_(first) {}
  void enter_layer(int64_t /*layer*/, ops::Pass /*pass*/) override {}
  void leave_layer(int64_t /*layer*/, ops::Pass /*pass*/) override {}
  kernels::WeightView weight(int64_t parameter) const override {
    return joint_->weight(first_ + parameter);
  }
  float* grad(int64_t /*parameter*/) override { return nullptr; }

 private:
  const std::shared_ptr<const ResidentWeights> joint_;  // shared: with the engine
  const int64_t first_;
};

}  // namespace nibble
