#pragma once

// Body of rope.h for one ISA; included only by isa_*.cc.

#include "core/kernels/rope.h"
#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

inline void rotate_head(float* x, const float* cosine, const float* sine, int64_t half,
                        bool backward) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int count = static_cast<int>(min_of(kLanes, half - i));
    const F32x16 c = load_partial(cosine + i, count, 0.0f);
    F32x16 s = load_partial(sine + i, count, 0.0f);
    if (backward) s = zero() - s;
    const F32x16 a = load_partial(x + i, count, 0.0f);
    const F32x16 b = load_partial(x + half + i, count, 0.0f);
    store_partial(x + i, count, a * c - b * s);
    store_partial(x + half + i, count, b * c + a * s);
  }
}

void rope_isa(float* x, const int32_t* position, int64_t tokens, int64_t heads,
              const RopeTable& table, RopeDirection direction, const Parallel& parallel) {
  const bool backward = direction == RopeDirection::kBackward;
  parallel.run(tokens, max_of(1, 16384 / (heads * table.half)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* cosine = table.cosine + position[t] * table.half;
      const float* sine = table.sine + position[t] * table.half;
      for (int64_t h = 0; h < heads; ++h) {
        rotate_head(x + (t * heads + h) * 2 * table.half, cosine, sine, table.half, backward);
      }
    }
  });
}

}  // namespace
}  // namespace nibble::kernels
