#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "core/quant/bf16.h"

namespace nibble::kernels {

/// Normal floats from a fixed seed.
inline std::vector<float> random_floats(int64_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(engine);
  return values;
}

inline std::vector<uint16_t> random_bf16(int64_t count, uint32_t seed, float scale = 1.0f) {
  std::vector<uint16_t> values;
  for (const float value : random_floats(count, seed, scale)) {
    values.push_back(quant::float_to_bf16(value));
  }
  return values;
}

}  // namespace nibble::kernels
