#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/kernels_cuda/device_weight.h"

// Products with packed weights on tensor cores, float32 sums rounded once. Every output is summed
// in one order that depends on cols and format only: eight interleaved chains of 128 input
// features, added in order. So a token's result is the same in any batch ("exact"), and w' is the
// quantizer's to the bit. INT4 groups are 32, 64 or 128; cols is a multiple of 32.

namespace nibble::kernels::cuda {

/// y = x w'^T.
///   x  device BF16 bits [tokens, cols]
///   y  device [tokens, rows], overwritten: BF16 bits or float32
void linear(const uint16_t* x, const DeviceWeight& w, int64_t tokens, uint16_t* y,
            cudaStream_t stream);
void linear(const uint16_t* x, const DeviceWeight& w, int64_t tokens, float* y,
            cudaStream_t stream);

/// Experts' matrices of one shape and format: expert e's is table[e * stride].
struct DeviceExperts {
  WeightView view;                    ///< of any of them
  const WeightView* table = nullptr;  ///< device memory
  int64_t num_experts = 0;
  int64_t stride = 1;
};

/// Rows [begin[e], begin[e + 1]) of x through expert e.
///   x      device BF16 bits [pairs, cols]
///   begin  device int32 [num_experts + 1]
///   pairs  rows of x; decides the launch, not the result
///   y      device BF16 bits [pairs, rows], overwritten
void grouped_linear(const uint16_t* x, const DeviceExperts& w, const int32_t* begin, int64_t pairs,
                    uint16_t* y, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
