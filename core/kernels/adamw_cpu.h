#pragma once

// Body of adamw.h for one ISA; included only by isa_*.cc.

#include "core/kernels/activation_cpu.h"
#include "core/kernels/adamw.h"
#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

[[maybe_unused]] void adamw_isa(float* master, float* m, float* v, const float* grad, int64_t count,
                                const AdamwParams& p, const Parallel& parallel) {
  const double correction1 = 1.0 - __builtin_pow(p.beta1, static_cast<double>(p.step));
  const double correction2 = 1.0 - __builtin_pow(p.beta2, static_cast<double>(p.step));
  const F32x16 step_size = splat(static_cast<float>(p.lr / correction1));
  const F32x16 root_scale = splat(static_cast<float>(__builtin_sqrt(correction2)));
  const F32x16 keep = splat(1.0f - p.lr * p.weight_decay);
  const F32x16 beta1 = splat(p.beta1);
  const F32x16 beta2 = splat(p.beta2);
  const F32x16 rest1 = splat(1.0f - p.beta1);
  const F32x16 rest2 = splat(1.0f - p.beta2);
  for_chunks(count, parallel, [&](int64_t i, int n) {
    const F32x16 g = load_partial(grad + i, n, 0.0f) * splat(p.grad_scale);
    const F32x16 mi = load_partial(m + i, n, 0.0f) * beta1 + g * rest1;
    const F32x16 vi = load_partial(v + i, n, 0.0f) * beta2 + g * g * rest2;
    store_partial(m + i, n, mi);
    store_partial(v + i, n, vi);
    const F32x16 denominator = square_root(vi) / root_scale + splat(p.eps);
    const F32x16 w = load_partial(master + i, n, 0.0f) * keep;
    store_partial(master + i, n, w - step_size * (mi / denominator));
  });
}

// One block's sum: eight lanes of doubles by FMA would need another type; squares of floats are
// exact in double, so the order inside a block is the only rounding, and it is fixed.
[[maybe_unused]] double square_block_isa(const float* x, int64_t count) {
  double lane[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int64_t l = 0; l < 8; ++l) {
      lane[l] += static_cast<double>(x[i + l]) * static_cast<double>(x[i + l]);
    }
  }
  for (; i < count; ++i) lane[i % 8] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

}  // namespace
}  // namespace nibble::kernels
