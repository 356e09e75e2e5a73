#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/kernels/router.h"

// All arrays are on the device.

namespace nibble::kernels::cuda {

/// softmax(logits) in float32 and its top-k in descending order, ties to the lower expert; with
/// kReplay `expert` is read instead.
///   logits  float32 [tokens, experts]
///   prob    float32 [tokens, experts], overwritten
///   expert  int32 [tokens, top_k]
///   weight  float32 [tokens, top_k], overwritten
/// Throws Error{kUnimplemented} for more than 1024 experts.
void router_top_k(const float* logits, const RouterShape& shape, RouterMode mode, float* prob,
                  int32_t* expert, float* weight, cudaStream_t stream);

/// dlogits (overwritten) from dweight, through the gather and the softmax.
void router_backward(const float* prob, const int32_t* expert, const float* dweight,
                     const RouterShape& shape, float* dlogits, cudaStream_t stream);

/// Sorts (token, slot) pairs by expert, stable in token order: expert e owns entries
/// [begin[e], begin[e + 1]) of `pair`, and pair = token * top_k + slot.
///   expert  int32 [pairs]
///   begin   int32 [num_experts + 1], overwritten
///   pair    int32 [pairs], overwritten
void order_by_expert(const int32_t* expert, int64_t pairs, int64_t num_experts, int32_t* begin,
                     int32_t* pair, cudaStream_t stream);

/// out[i] = x[pair[i] / top_k]: rows of `cols` BF16 values; cols a multiple of 8.
void gather_pairs(const uint16_t* x, const int32_t* pair, int64_t pairs, int64_t top_k,
                  int64_t cols, uint16_t* out, cudaStream_t stream);

/// y[t] = sum over slots s, in slot order, of weight[t, s] * part[place of pair (t, s)], where
/// place is the inverse of `pair`.
///   part   BF16 bits [pairs, cols], in expert order
///   weight float32 [tokens, top_k]; null: ones
///   place  int32 [pairs]: index in `part` of pair t * top_k + s
///   y      BF16 bits [tokens, cols], overwritten
void combine_experts(const uint16_t* part, const int32_t* place, const float* weight,
                     int64_t tokens, int64_t top_k, int64_t cols, uint16_t* y, cudaStream_t stream);

/// out[i] = scale[pair[i]] * x[pair[i] / top_k], rounded once.
///   scale  float32 [tokens * top_k]
void gather_scaled_pairs(const uint16_t* x, const int32_t* pair, const float* scale, int64_t pairs,
                         int64_t top_k, int64_t cols, uint16_t* out, cudaStream_t stream);

/// dot[t, s] = part[place of pair (t, s)] . dy[t]: the gradient of combine_experts' weights.
///   dot  float32 [tokens, top_k], overwritten
void pair_dots(const uint16_t* part, const int32_t* place, const uint16_t* dy, int64_t tokens,
               int64_t top_k, int64_t cols, float* dot, cudaStream_t stream);

/// place[pair[i]] = i.
void invert_pairs(const int32_t* pair, int64_t pairs, int32_t* place, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
