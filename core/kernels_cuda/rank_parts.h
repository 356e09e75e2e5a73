#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// What several ranks computed of a step, put together. All arrays are on the device.

namespace nibble::kernels::cuda {

/// out[t] = parts[0][t], parts[1][t], ...
///   parts  BF16 bits [ranks, tokens, cols]; cols a multiple of 8
///   out    BF16 bits [tokens, ranks * cols]
void join_columns(const uint16_t* parts, int64_t ranks, int64_t tokens, int64_t cols, uint16_t* out,
                  cudaStream_t stream);

/// The same of logits whose parts may overlap: rank r's begin at min(r * cols, whole - cols).
///   parts  float32 [ranks, rows, cols]
///   out    float32 [rows, whole], overwritten
void join_logits(const float* parts, int64_t rows, int64_t cols, int64_t whole, float* out,
                 cudaStream_t stream);

/// Where pairs are that came from the ranks that hold their experts, each of which sent `stride`
/// pairs: place[p] = (expert[p] / experts_a_rank) * stride + p.
///   expert, place  int32 [pairs]
void places_from_holders(const int32_t* expert, int64_t pairs, int64_t experts_a_rank,
                         int64_t stride, int32_t* place, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
