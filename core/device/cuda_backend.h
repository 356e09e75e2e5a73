#pragma once

#include <memory>

#include "core/ops/backend.h"
#include "core/ops/numerics.h"

namespace nibble::ops {

/// Kernels of core/kernels_cuda, cuBLAS and torch's flash attention on the process's GPU, on the
/// current stream; BF16 activations, float32 sums.
///
/// The forward pass is `exact` (our products and attention, whose order of summation depends on the
/// shapes of weights only, as the engine's does) or `fast` (dequantized panels through cuBLAS,
/// flash attention). The backward pass is the same in both: cuBLAS, and flash attention fed with
/// the forward's result. Call use_cuda_device() first.
std::unique_ptr<Backend> make_cuda_backend(Numerics numerics);

/// Kernels on weights that work beside a backend, on a stream of their own: for threads that
/// publish or receive while others compute.
std::unique_ptr<kernels::WeightKernels> make_cuda_weight_kernels();

}  // namespace nibble::ops
