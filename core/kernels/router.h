#pragma once

#include <cstdint>

#include "core/kernels/parallel.h"

namespace nibble::kernels {

struct RouterShape {
  int64_t tokens = 0;
  int64_t experts = 0;
  int64_t top_k = 0;
  bool normalize = false;  ///< divide the chosen probabilities by their sum
};

/// softmax(logits) in float32 and the top-k of it, in descending order, ties to the lower expert.
///   logits  float32 [tokens, experts]
///   prob    float32 [tokens, experts], overwritten
///   expert  int32 [tokens, top_k], overwritten; with `replay` read instead (R3)
///   weight  float32 [tokens, top_k], overwritten
enum class RouterMode { kChoose, kReplay };
void router_top_k(const float* logits, const RouterShape& shape, RouterMode mode, float* prob,
                  int32_t* expert, float* weight, const Parallel& parallel);

/// dlogits (overwritten) from dweight, through the gather and the softmax.
void router_backward(const float* prob, const int32_t* expert, const float* dweight,
                     const RouterShape& shape, float* dlogits, const Parallel& parallel);

/// y[t] = sum over slots s, in slot order, of weight[t, s] * part[t * top_k + s].
///   part  float32 [tokens * top_k, cols]; cols a multiple of 16
void combine_experts(const float* part, const float* weight, int64_t tokens, int64_t top_k,
                     int64_t cols, float* y, const Parallel& parallel);

}  // namespace nibble::kernels
