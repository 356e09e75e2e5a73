#pragma once

#include <cstdint>

#include "core/base/host_device.h"

namespace nibble::kernels {

enum class WeightFormat : uint8_t {
  kBf16,  ///< data: BF16 bits [rows, cols]
  kInt4,  ///< data: compressed-tensors words [rows, cols/8]; scale: BF16 bits [rows, cols/group]
};

/// A matrix as it is served and multiplied with, borrowed. `cols` (input features) is a multiple
/// of 16, and of `group` where quantized.
struct WeightView {
  WeightFormat format = WeightFormat::kBf16;
  const void* data = nullptr;
  const uint16_t* scale = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t group = 0;

  NIBBLE_HOST_DEVICE const uint16_t* bf16() const { return static_cast<const uint16_t*>(data); }
  NIBBLE_HOST_DEVICE const uint32_t* words() const { return static_cast<const uint32_t*>(data); }
};

}  // namespace nibble::kernels
