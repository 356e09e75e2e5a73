#pragma once

// Body of router.h for one ISA; included only by isa_*.cc.

#include "core/kernels/router.h"
#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

inline void softmax_row(const float* logits, int64_t count, float* prob) {
  F32x16 top = splat(-__builtin_inff());
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = static_cast<int>(min_of(kLanes, count - i));
    top = maximum(top, load_partial(logits + i, n, -__builtin_inff()));
  }
  const F32x16 highest = splat(reduce_max(top));
  F32x16 sum = zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = static_cast<int>(min_of(kLanes, count - i));
    store_partial(prob + i, n, exponential(load_partial(logits + i, n, 0.0f) - highest));
    sum = sum + load_partial(prob + i, n, 0.0f);
  }
  const F32x16 total = splat(reduce_add(sum));
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = static_cast<int>(min_of(kLanes, count - i));
    store_partial(prob + i, n, load_partial(prob + i, n, 0.0f) / total);
  }
}

inline bool taken(const int32_t* chosen, int64_t count, int64_t expert) {
  for (int64_t s = 0; s < count; ++s) {
    if (chosen[s] == expert) return true;
  }
  return false;
}

inline void choose_top_k(const float* prob, const RouterShape& shape, int32_t* expert) {
  for (int64_t s = 0; s < shape.top_k; ++s) {
    int64_t best = -1;
    for (int64_t e = 0; e < shape.experts; ++e) {
      if ((best < 0 || prob[e] > prob[best]) && !taken(expert, s, e)) best = e;
    }
    expert[s] = static_cast<int32_t>(best);
  }
}

void router_top_k_isa(const float* logits, const RouterShape& shape, RouterMode mode, float* prob,
                      int32_t* expert, float* weight, const Parallel& parallel) {
  parallel.run(shape.tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* p = prob + t * shape.experts;
      int32_t* chosen = expert + t * shape.top_k;
      float* w = weight + t * shape.top_k;
      softmax_row(logits + t * shape.experts, shape.experts, p);
      if (mode == RouterMode::kChoose) choose_top_k(p, shape, chosen);
      float sum = 0.0f;
      for (int64_t s = 0; s < shape.top_k; ++s) {
        w[s] = p[chosen[s]];
        sum += w[s];
      }
      for (int64_t s = 0; shape.normalize && s < shape.top_k; ++s) w[s] = w[s] / sum;
    }
  });
}

void router_backward_isa(const float* prob, const int32_t* expert, const float* dweight,
                         const RouterShape& shape, float* dlogits, const Parallel& parallel) {
  parallel.run(shape.tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* p = prob + t * shape.experts;
      const int32_t* chosen = expert + t * shape.top_k;
      const float* dw = dweight + t * shape.top_k;
      float* dl = dlogits + t * shape.experts;
      float sum = 0.0f;
      float pull = 0.0f;
      for (int64_t s = 0; s < shape.top_k; ++s) {
        sum += p[chosen[s]];
        pull += dw[s] * p[chosen[s]];
      }
      const float divisor = shape.normalize ? sum : 1.0f;
      const float mean = shape.normalize ? pull / sum : 0.0f;
      // dp is nonzero only at the chosen experts; softmax: dl = p * (dp - sum p dp).
      float inner = 0.0f;
      for (int64_t s = 0; s < shape.top_k; ++s) inner += p[chosen[s]] * (dw[s] - mean) / divisor;
      for (int64_t e = 0; e < shape.experts; ++e) dl[e] = -p[e] * inner;
      for (int64_t s = 0; s < shape.top_k; ++s) {
        dl[chosen[s]] += p[chosen[s]] * (dw[s] - mean) / divisor;
      }
    }
  });
}

void combine_experts_isa(const float* part, const float* weight, int64_t tokens, int64_t top_k,
                         int64_t cols, float* y, const Parallel& parallel) {
  parallel.run(tokens, 8, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t c = 0; c < cols; c += kLanes) {
        F32x16 sum = zero();
        for (int64_t s = 0; s < top_k; ++s) {
          sum = fma(splat(weight[t * top_k + s]), load(part + (t * top_k + s) * cols + c), sum);
        }
        store(y + t * cols + c, sum);
      }
    }
  });
}

}  // namespace
}  // namespace nibble::kernels
