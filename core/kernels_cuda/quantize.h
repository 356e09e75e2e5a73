#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/quant/rows.h"

namespace nibble::kernels::cuda {

/// Quantizes and packs in one pass, sym7, byte-equal to quantize_pack_int4 on the CPU.
///   master     device float32 [rows, cols], rounded to BF16 first
///   words      device uint32 [rows, cols/8], overwritten
///   scale      device BF16 bits [rows, cols/group], overwritten
///   first_bad  device uint64, to be set to ~0 before; the smallest (group index * 2 + is_overflow)
///              that cannot be quantized
/// Enqueues on `stream` and returns; throws Error{kInternal} if the launch is refused.
/// `shape.group` is 32, 64 or 128.
void quantize_pack_int4(const float* master, const quant::GroupShape& shape, uint32_t* words,
                        uint16_t* scale, unsigned long long* first_bad, cudaStream_t stream);

/// weight = w' as BF16 bits [rows, cols].
void dequantize_int4(const uint32_t* words, const uint16_t* scale, const quant::GroupShape& shape,
                     uint16_t* weight, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
