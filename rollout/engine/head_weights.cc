#include "rollout/engine/head_weights.h"

#include <cmath>
#include <numbers>
#include <utility>

#include "core/base/fail.h"
#include "core/base/splitmix64.h"
#include "core/quant/bf16.h"

namespace nibble {

ModelSpec draft_head_spec(const ModelConfig& model) {
  ModelConfig config = model;
  config.architecture = model.qk_norm ? Architecture::kQwen3 : Architecture::kLlama;
  config.num_layers = 1;
  config.moe = {};
  config.layer_is_moe = {false};
  config.joins_hidden = true;
  config.lora.reset();
  return make_model_spec(config);
}

bool is_of_model(const ParameterTable& head, int64_t parameter) {
  return parameter == head.embedding || parameter == head.lm_head;
}

HeadWeights::HeadWeights(const ModelSpec& head, const ModelSpec& model,
                         std::shared_ptr<const ops::WeightSource> own,
                         std::shared_ptr<const ops::WeightSource> of_model)
    : embedding_(head.table.embedding),
      lm_head_(head.table.lm_head),
      model_embedding_(model.table.embedding),
      model_lm_head_(model.table.lm_head),
      own_(std::move(own)),
      of_model_(std::move(of_model)) {}

kernels::WeightView HeadWeights::weight(int64_t parameter) const {
  if (parameter == embedding_) return of_model_->weight(model_embedding_);
  if (parameter == lm_head_) return of_model_->weight(model_lm_head_);
  return own_->weight(parameter);
}

std::unique_ptr<ResidentWeights> own_head_weights(const ParameterTable& table,
                                                  std::vector<StoredParameter> own,
                                                  DeviceKind device) {
  NIBBLE_CHECK(std::ssize(own) == table.size(), "{} parameters for a head of {}", own.size(),
               table.size());
  // Shared: weights that nobody writes to any more.
  return std::make_unique<ResidentWeights>(
      table, plan_bf16(table), std::make_shared<const std::vector<StoredParameter>>(std::move(own)),
      device);
}

std::unique_ptr<ResidentWeights> random_head_weights(const ParameterTable& table, uint64_t seed) {
  std::vector<StoredParameter> own;
  uint64_t state = seed;
  const auto uniform = [&state] {
    state += 0x9e3779b97f4a7c15;
    return (static_cast<double>(splitmix64(state) >> 11) + 0.5) * 0x1.0p-53;
  };
  for (int64_t p = 0; p < table.size(); ++p) {
    const ParameterSpec& parameter = table.at(p);
    StoredParameter stored;
    if (!is_of_model(table, p)) {
      stored.bf16 = Array<uint16_t>(static_cast<size_t>(parameter.num_elements()));
      const double deviation = 0.5 / std::sqrt(static_cast<double>(parameter.cols));
      for (uint16_t& bits : stored.bf16) {
        const double radius = std::sqrt(-2.0 * std::log(uniform()));
        const double normal = radius * std::cos(2.0 * std::numbers::pi * uniform());
        bits = quant::float_to_bf16(parameter.is_vector() ? 1.0f
                                                          : static_cast<float>(deviation * normal));
      }
    }
    own.push_back(std::move(stored));
  }
  return own_head_weights(table, std::move(own));
}

}  // namespace nibble
