#pragma once

// Body of gptq.h for one ISA; included only by isa_*.cc. The arithmetic is
// core/quant/group_codec.h's, a lane a row or a candidate, so every ISA has the same bits.

#include "core/kernels/gptq.h"
#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

inline F32x16 code_of(F32x16 weight, F32x16 scale, const quant::GridLimits& limits) {
  const F32x16 low = splat(static_cast<float>(limits.min_code));
  const F32x16 high = splat(static_cast<float>(limits.max_code));
  return minimum(maximum(round_even(weight / scale), low), high);
}

// Square errors of a group under scales, a lane a scale. Weights in order: a sum does not depend
// on the number of lanes.
[[maybe_unused]] void group_errors_isa(const uint16_t* weight, const float* importance,
                                       int64_t count, const quant::GridLimits& limits,
                                       const float* scales, float* errors) {
  constexpr int kVectors = kScaleLanes / kLanes;
  F32x16 scale[kVectors];
  F32x16 sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    scale[v] = load(scales + v * kLanes);
    sum[v] = zero();
  }
  for (int64_t i = 0; i < count; ++i) {
    const F32x16 w = splat(bf16_value(weight[i]));
    const F32x16 part = splat(importance == nullptr ? 1.0f : importance[i]);
    for (int v = 0; v < kVectors; ++v) {
      const F32x16 error = w - round_bf16(code_of(w, scale[v], limits) * scale[v]);
      sum[v] = sum[v] + part * (error * error);
    }
  }
  for (int v = 0; v < kVectors; ++v) store(errors + v * kLanes, sum[v]);
}

// Sixteen rows of a block, column by column.
inline void gptq_sixteen(const GptqBlock& b, const quant::GridLimits& limits, int64_t row,
                         int count) {
  float weight[kGptqBlock * kLanes];
  float code[kGptqBlock * kLanes];
  float error[kGptqBlock * kLanes];
  memset(weight, 0, sizeof weight);
  for (int lane = 0; lane < count; ++lane) {
    const float* from = b.weight + (row + lane) * b.weight_stride;
    for (int64_t j = 0; j < b.cols; ++j) weight[j * kLanes + lane] = from[j];
  }
  for (int64_t j = 0; j < b.cols; ++j) {
    float scale_of[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) scale_of[lane] = 1.0f;
    for (int lane = 0; lane < count; ++lane) {
      scale_of[lane] = bf16_value(b.scale[(row + lane) * b.groups + b.column[j] / b.group]);
    }
    const float* factor = b.factor + j * b.factor_stride;
    const F32x16 w = load(weight + j * kLanes);
    const F32x16 scale = load(scale_of);
    const F32x16 q = code_of(w, scale, limits);
    const F32x16 e = (w - round_bf16(q * scale)) / splat(factor[j]);
    store(code + j * kLanes, q);
    store(error + j * kLanes, e);
    for (int64_t k = j + 1; k < b.cols; ++k) {
      store(weight + k * kLanes, load(weight + k * kLanes) - e * splat(factor[k]));
    }
  }
  for (int lane = 0; lane < count; ++lane) {
    for (int64_t j = 0; j < b.cols; ++j) {
      b.error[(row + lane) * b.cols + j] = error[j * kLanes + lane];
      b.code[(row + lane) * b.code_stride + b.column[j]] =
          static_cast<int8_t>(code[j * kLanes + lane]);
    }
  }
}

[[maybe_unused]] void gptq_rows_isa(const GptqBlock& block, const quant::GridLimits& limits,
                                    int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row += kLanes) {
    gptq_sixteen(block, limits, row, static_cast<int>(min_of(kLanes, end - row)));
  }
}

}  // namespace
}  // namespace nibble::kernels
