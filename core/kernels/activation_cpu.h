#pragma once

// Body of activation.h for one ISA; included only by isa_*.cc.

#include "core/kernels/parallel.h"
#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kElementGrain = 16384;

inline F32x16 sigmoid(F32x16 x) { return splat(1.0f) / (splat(1.0f) + exponential(zero() - x)); }

// Applies body(offset, count) to chunks of up to sixteen elements.
template <typename Body>
inline void for_chunks(int64_t count, const Parallel& parallel, Body body) {
  parallel.run((count + kLanes - 1) / kLanes, kElementGrain / kLanes,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin * kLanes; i < min_of(end * kLanes, count); i += kLanes) {
                   body(i, static_cast<int>(min_of(kLanes, count - i)));
                 }
               });
}

[[maybe_unused]] void silu_mul_isa(const float* gate, const float* up, int64_t count, float* out,
                                   const Parallel& parallel) {
  for_chunks(count, parallel, [&](int64_t i, int n) {
    const F32x16 g = load_partial(gate + i, n, 0.0f);
    store_partial(out + i, n, g * sigmoid(g) * load_partial(up + i, n, 0.0f));
  });
}

[[maybe_unused]] void silu_mul_backward_isa(const float* gate, const float* up, const float* dout,
                                            int64_t count, float* dgate, float* dup,
                                            const Parallel& parallel) {
  for_chunks(count, parallel, [&](int64_t i, int n) {
    const F32x16 g = load_partial(gate + i, n, 0.0f);
    const F32x16 u = load_partial(up + i, n, 0.0f);
    const F32x16 d = load_partial(dout + i, n, 0.0f);
    const F32x16 s = sigmoid(g);
    const F32x16 slope = s * fma(g, splat(1.0f) - s, splat(1.0f));
    store_partial(dup + i, n, d * g * s);
    store_partial(dgate + i, n, d * u * slope);
  });
}

[[maybe_unused]] void add_isa(float* x, const float* y, int64_t count, const Parallel& parallel) {
  for_chunks(count, parallel, [&](int64_t i, int n) {
    store_partial(x + i, n, load_partial(x + i, n, 0.0f) + load_partial(y + i, n, 0.0f));
  });
}

[[maybe_unused]] void round_to_bf16_isa(float* x, int64_t count, const Parallel& parallel) {
  for_chunks(count, parallel, [&](int64_t i, int n) {
    store_partial(x + i, n, round_bf16(load_partial(x + i, n, 0.0f)));
  });
}

[[maybe_unused]] void embed_isa(const int32_t* id, int64_t tokens, const uint16_t* table,
                                int64_t cols, float* out, const Parallel& parallel) {
  parallel.run(tokens, max_of(1, kElementGrain / cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const uint16_t* row = table + id[t] * cols;
      for (int64_t c = 0; c < cols; c += kLanes) store(out + t * cols + c, load_bf16(row + c));
    }
  });
}

[[maybe_unused]] void embed_backward_isa(const int32_t* id, int64_t tokens, int32_t padding,
                                         const float* dout, int64_t cols, float* dtable,
                                         const Parallel& parallel) {
  // Threads own columns: tokens may repeat, and their order must not depend on threads.
  parallel.run(cols / kLanes, 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < tokens; ++t) {
      if (id[t] == padding) continue;
      float* row = dtable + id[t] * cols;
      for (int64_t c = begin * kLanes; c < end * kLanes; c += kLanes) {
        store(row + c, load(row + c) + load(dout + t * cols + c));
      }
    }
  });
}

}  // namespace
}  // namespace nibble::kernels
