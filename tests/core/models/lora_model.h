#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/quant/bf16.h"
#include "tests/core/models/oracle_model.h"

namespace nibble {

/// A matrix of tests/oracles/lora/make_lora.py's grid(), BF16 bits [rows, cols].
inline std::vector<uint16_t> lora_grid(int64_t rows, int64_t cols, int number, double step,
                                       double scale) {
  std::vector<uint16_t> bits;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const double place = std::fmod(
          static_cast<double>(r) * step + static_cast<double>(c) * 401.0 + number * 97.0, 1009.0);
      bits.push_back(quant::float_to_bf16(static_cast<float>((place / 1009.0 - 0.5) * scale)));
    }
  }
  return bits;
}

/// An oracle's checkpoint with the adapters of tests/oracles/lora beside its matrices.
struct LoraModel {
  LoraModel(const std::string& name, const std::string& variant, const LoraShape& shape)
      : base(name, variant), spec(with_adapters(base.spec.config, shape)) {
    QuantizationPlan plan = base.weights->plan();
    plan.quantized.resize(static_cast<size_t>(spec.table.size()), false);
    weights = std::make_unique<ResidentWeights>(spec.table, plan);
    int number = 0;
    for (int64_t p = 0; p < base.spec.table.size(); ++p) {
      weights->stored(p) = base.weights->stored(p);
      const AdapterParameters adapter = spec.table.adapter_of(p);
      if (!adapter.exists()) continue;
      const ParameterSpec& a = spec.table.at(adapter.a);
      const ParameterSpec& b = spec.table.at(adapter.b);
      set(adapter.a,
          lora_grid(a.rows, a.cols, number, 193.0, 2.0 / std::sqrt(static_cast<double>(a.cols))));
      set(adapter.b, lora_grid(b.rows, b.cols, number, 211.0, 0.25));
      ++number;
    }
    num_adapters = number;
  }

  static ModelSpec with_adapters(ModelConfig config, const LoraShape& shape) {
    config.lora = shape;
    return make_model_spec(config);
  }
  void set(int64_t parameter, const std::vector<uint16_t>& bits) {
    weights->stored(parameter).bf16 = Array<uint16_t>(std::span<const uint16_t>(bits));
  }

  OracleModel base;
  ModelSpec spec;
  std::unique_ptr<ResidentWeights> weights;
  int num_adapters = 0;
};

}  // namespace nibble
