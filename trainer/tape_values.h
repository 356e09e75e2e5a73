#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <span>
#include <vector>

#include "trainer/parallel/gathered_weights.h"

namespace nibble {

/// A float32 tensor's values on the host.
std::vector<float> host_values(const at::Tensor& tensor);

/// A pass's output, float32 on a backend's device, and the gradient of its elements; no values: 0.
struct OutputGrad {
  const at::Tensor& output;
  std::span<const float> grad;
};

/// Backpropagates what one pass gave into the gradient buffers of `weights`, and waits for those of
/// other ranks. Collective.
void run_backward(std::initializer_list<OutputGrad> outputs, GatheredWeights& weights);

}  // namespace nibble
