#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "core/kernels/weight_view.h"
#include "core/kernels_cuda/device_weight.h"

namespace nibble::kernels::cuda {

/// panel = w' as BF16 bits, one matrix after another; a copy where a matrix is BF16. The views
/// (host memory, device pointers) are of one shape and format; INT4 groups are a multiple of 8.
///   panel  device BF16 bits [views.size(), rows, cols], overwritten
void dequantize(std::span<const WeightView> views, uint16_t* panel, cudaStream_t stream);

/// The same of one matrix whose pointers are read when the kernel runs (DeviceWeight).
///   panel  device BF16 bits [rows, cols], overwritten; rows * cols is a multiple of 8
void dequantize(const DeviceWeight& w, uint16_t* panel, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
