#pragma once

#include <cstdint>

#include "core/kernels/parallel.h"
#include "core/quant/moment_rounding.h"

namespace nibble::kernels {

struct AdamwParams {
  float lr = 1e-6f;
  float beta1 = 0.9f;
  float beta2 = 0.98f;
  float eps = 1e-8f;
  float weight_decay = 0.1f;
  int64_t step = 1;         ///< 1 for the first update
  float grad_scale = 1.0f;  ///< clipping coefficient
};

/// One decoupled-decay AdamW update (torch.optim.AdamW: decay first, eps outside the root).
///   master, m, v  float32 [count], updated
///   grad          float32 [count]
void adamw(float* master, float* m, float* v, const float* grad, int64_t count,
           const AdamwParams& params, const Parallel& parallel);

/// Moments that are kept in BF16, of a run of elements of one tensor.
struct Bf16Moments {
  uint16_t* m = nullptr;
  uint16_t* v = nullptr;
  uint64_t first = 0;   ///< position in the tensor of the run's first element
  uint64_t seed = 0;    ///< of the rounding
  uint32_t tensor = 0;  ///< its number in the model

  NIBBLE_HOST_DEVICE quant::MomentDraw draw(const AdamwParams& params) const {
    return {seed, tensor, static_cast<uint32_t>(params.step)};
  }
};
/// The same update of moments that are widened, and rounded again as in moment_rounding.h; the
/// masters get them unrounded.
void adamw_bf16(float* master, const Bf16Moments& moments, const float* grad, int64_t count,
                const AdamwParams& params, const Parallel& parallel);

/// Sum of squares in double, in an order that depends on `count` alone.
double sum_of_squares(const float* x, int64_t count, const Parallel& parallel);

}  // namespace nibble::kernels
