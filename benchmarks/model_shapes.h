#pragma once

#include <memory>
#include <string>

#include "core/models/decoder.h"
#include "core/models/weights.h"

namespace nibble {

/// Shapes that benchmarks run on: "qwen3-0.6b", "qwen3-4b", "30b-a3b", and "tiny-dense" and
/// "tiny-moe" for dry runs. `layers` > 0 replaces their number.
ModelConfig shape_of(const std::string& name, int64_t layers = 0);

/// The config.json that parse_model_config() reads as `config`.
std::string config_json(const ModelConfig& config);

/// What is usually quantized of the shape, at 4 bits: the experts of a MoE model, else every
/// Linear.
QuantizationPlan usual_plan(const ModelSpec& spec, int64_t group_size);

/// Random codes, scales that keep activations of order one, unit norms, made on the device.
/// Enqueues on the calling thread's stream; other values at each call.
void randomize(const ModelSpec& spec, ResidentWeights& weights);
std::shared_ptr<ResidentWeights> random_weights(const ModelSpec& spec, const QuantizationPlan& plan,
                                                DeviceKind device);

}  // namespace nibble
