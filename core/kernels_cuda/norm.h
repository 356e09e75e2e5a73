#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/kernels/norm.h"
#include "core/kernels_cuda/device_weight.h"

namespace nibble::kernels::cuda {

/// y = x / sqrt(mean(x^2) + eps) * weight: BF16 in and out, float32 inside, rounded once. A row's
/// result depends on its own values only.
///   x, y    device BF16 bits [rows, cols]; may be the same array; cols a multiple of 8
///   weight  BF16 [1, cols]
void rms_norm(const uint16_t* x, const DeviceWeight& weight, const NormShape& shape, uint16_t* y,
              cudaStream_t stream);

/// Gradients of rms_norm, in one order for given sizes.
///   x, dy    device BF16 bits [rows, cols], cols a multiple of 8 and at most kMaxNormColumns
///   dx       device BF16 bits [rows, cols], overwritten; not dy
///   dweight  device float32 [cols], added to
///   scratch  device float32 [norm_scratch_floats(shape)]
void rms_norm_backward(const uint16_t* x, const uint16_t* weight, const uint16_t* dy,
                       const NormShape& shape, uint16_t* dx, float* dweight, float* scratch,
                       cudaStream_t stream);
int64_t norm_scratch_floats(const NormShape& shape);
constexpr int64_t kMaxNormColumns = 16384;

}  // namespace nibble::kernels::cuda
