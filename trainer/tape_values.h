#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "trainer/parallel/gathered_weights.h"

namespace nibble {

/// A float32 tensor's values on the host.
std::vector<float> host_values(const at::Tensor& tensor);

/// Backpropagates `grad` (one value per element of `output`, float32 on a backend's device) into
/// the gradient buffers of `weights`, and waits for those of other ranks. Collective.
void run_backward(const at::Tensor& output, std::span<const float> grad, GatheredWeights& weights);

}  // namespace nibble
