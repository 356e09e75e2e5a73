#pragma once

// Body of norm.h for one ISA; included only by isa_*.cc.

#include "core/kernels/linear_cpu.h"
#include "core/kernels/norm.h"
#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

inline float inverse_rms(const float* x, const NormShape& shape) {
  F32x16 squares = zero();
  for (int64_t c = 0; c < shape.cols; c += kLanes) {
    const F32x16 v = load(x + c);
    squares = fma(v, v, squares);
  }
  const float mean = reduce_add(squares) / static_cast<float>(shape.cols);
  return 1.0f / __builtin_sqrtf(mean + shape.eps);
}

void rms_norm_isa(const float* x, const uint16_t* weight, const NormShape& shape, float* y,
                  const Parallel& parallel) {
  parallel.run(shape.rows, max_of(1, 32768 / shape.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * shape.cols;
      float* yr = y + r * shape.cols;
      const F32x16 scale = splat(inverse_rms(xr, shape));
      for (int64_t c = 0; c < shape.cols; c += kLanes) {
        store(yr + c, load(xr + c) * scale * load_bf16(weight + c));
      }
    }
  });
}

void rms_norm_backward_isa(const float* x, const uint16_t* weight, const float* dy,
                           const NormShape& shape, float* dx, float* dweight,
                           const Parallel& parallel) {
  const Scratch inverse(shape.rows);
  float* r_rms = inverse.data();
  parallel.run(shape.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) r_rms[r] = inverse_rms(x + r * shape.cols, shape);
  });
  // Threads own columns here, so that the sum over rows has one order.
  parallel.run(shape.cols / kLanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * kLanes; c < end * kLanes; c += kLanes) {
      F32x16 sum = load(dweight + c);
      for (int64_t r = 0; r < shape.rows; ++r) {
        const int64_t at = r * shape.cols + c;
        sum = fma(load(dy + at) * load(x + at), splat(r_rms[r]), sum);
      }
      store(dweight + c, sum);
    }
  });
  parallel.run(shape.rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* xr = x + r * shape.cols;
      const float* dyr = dy + r * shape.cols;
      F32x16 dot = zero();
      for (int64_t c = 0; c < shape.cols; c += kLanes) {
        dot = fma(load(dyr + c) * load_bf16(weight + c), load(xr + c), dot);
      }
      const float s = r_rms[r];
      const F32x16 pull = splat(reduce_add(dot) * s * s / static_cast<float>(shape.cols));
      for (int64_t c = 0; c < shape.cols; c += kLanes) {
        const F32x16 g = load(dyr + c) * load_bf16(weight + c) - load(xr + c) * pull;
        store(dx + r * shape.cols + c, g * splat(s));
      }
    }
  });
}

}  // namespace
}  // namespace nibble::kernels
