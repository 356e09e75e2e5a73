#pragma once

#include <cstdint>

#include "core/kernels/weight_view.h"

namespace nibble::ops {

enum class Pass { kForward, kBackward };

/// Where a model's weights come from during a pass: resident in memory, or gathered layer by layer
/// ahead of use. Parameters are named by their index in the ParameterTable. One thread.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// Called in layer order in the forward pass and in reverse order in the backward pass. Between
  /// enter and leave, the layer's weights (and in backward its gradient buffers) are valid.
  virtual void enter_layer(int64_t layer, Pass pass) = 0;
  virtual void leave_layer(int64_t layer, Pass pass) = 0;
  /// The matrix as it is multiplied with: packed or BF16. A norm is a [1, cols] BF16 matrix.
  virtual kernels::WeightView weight(int64_t parameter) const = 0;
  /// float32 [rows, cols] to which the backward pass adds dL/dw'; null: no gradient is wanted.
  virtual float* grad(int64_t parameter) = 0;
};

}  // namespace nibble::ops
