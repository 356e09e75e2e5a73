#pragma once

#include <cstdint>
#include <memory>

#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "core/ops/weight_source.h"

namespace nibble {

/// The specification of a draft head for a model: one dense layer of the model's own sizes.
ModelSpec draft_head_spec(const ModelConfig& model);

/// Whether a parameter of a head is its model's: the embedding and the output matrix.
bool is_of_model(const ParameterTable& head, int64_t parameter);

/// A draft head's own weights beside its model's embedding and output matrix. Serves the model's
/// as long as it lives; gives no gradients.
class HeadWeights final : public ops::WeightSource {
 public:
  ///   own  of the parameters that are not the model's; what it has for these is not looked at
  HeadWeights(const ModelSpec& head, const ModelSpec& model,
              std::shared_ptr<const ops::WeightSource> own,
              std::shared_ptr<const ops::WeightSource> of_model);

  void enter_layer(int64_t, ops::Pass) override {}
  void leave_layer(int64_t, ops::Pass) override {}
  kernels::WeightView weight(int64_t parameter) const override;
  float* grad(int64_t /*parameter*/) override { return nullptr; }

 private:
  const int64_t embedding_, lm_head_;                        // of the head's parameters
  const int64_t model_embedding_, model_lm_head_;            // of the model's
  const std::shared_ptr<const ops::WeightSource> own_;       // shared: as an engine's
  const std::shared_ptr<const ops::WeightSource> of_model_;  // shared: as an engine's
};

/// A head's own weights in BF16 on a device; empty where the model's take their place.
///   table  of the head; must outlive the result
std::unique_ptr<ResidentWeights> own_head_weights(const ParameterTable& table,
                                                  std::vector<StoredParameter> own,
                                                  DeviceKind device = DeviceKind::kCpu);
/// Norms of 1 and matrices of small random values: to be trained. The same for the same seed.
std::unique_ptr<ResidentWeights> random_head_weights(const ParameterTable& table, uint64_t seed);

}  // namespace nibble
