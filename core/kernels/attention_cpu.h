#pragma once

// Body of attention.h for one ISA; included only by isa_*.cc.

#include "core/kernels/attention.h"
#include "core/kernels/linear_cpu.h"
#include "core/kernels/simd.h"

namespace nibble::kernels {
namespace {

constexpr int64_t kKeyBlock = 16;

template <int D>
inline float dot_head(const F32x16 (&q)[D], const float* k) {
  F32x16 sum = zero();
#pragma GCC unroll 8
  for (int d = 0; d < D; ++d) sum = fma(q[d], load(k + d * kLanes), sum);
  return reduce_add(sum);
}

// Four keys at a time: one tree of additions for all. The sums are those of dot_head().
template <int D>
inline void dot_heads(const F32x16 (&q)[D], const float* k, const int32_t* rows, int64_t kv_stride,
                      int64_t count, float* dot) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    F32x16 sum[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const float* key = k + rows[j + i] * kv_stride;
      sum[i] = zero();
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) sum[i] = fma(q[d], load(key + d * kLanes), sum[i]);
    }
    store_sums(dot + j, sum[0], sum[1], sum[2], sum[3]);
  }
  for (; j < count; ++j) dot[j] = dot_head<D>(q, k + rows[j] * kv_stride);
}

// One query token, one head; D = head_dim / 16.
template <int D>
inline void attend(const float* q, const float* k, const float* v, const int32_t* rows,
                   int64_t count, int64_t kv_stride, float scale, float* out, float* lse) {
  F32x16 qv[D];
  F32x16 acc[D];
  for (int d = 0; d < D; ++d) {
    qv[d] = load(q + d * kLanes);
    acc[d] = zero();
  }
  F32x16 sum = zero();
  float running_max = 0.0f;
  for (int64_t block = 0; block < count; block += kKeyBlock) {
    const int64_t n = min_of(kKeyBlock, count - block);
    float score[kKeyBlock];
    dot_heads<D>(qv, k, rows + block, kv_stride, n, score);
    for (int64_t j = 0; j < n; ++j) score[j] = score[j] * scale;
    float block_max = score[0];
    for (int64_t j = 1; j < n; ++j) block_max = score[j] > block_max ? score[j] : block_max;
    if (block == 0) {
      running_max = block_max;
    } else if (block_max > running_max) {
      const F32x16 shrink = exponential(splat(running_max - block_max));
      sum = sum * shrink;
      for (int d = 0; d < D; ++d) acc[d] = acc[d] * shrink;
      running_max = block_max;
    }
    float weight[kKeyBlock];
    const int lanes = static_cast<int>(n);
    store(weight, exponential(load_partial(score, lanes, running_max) - splat(running_max)));
    sum = sum + load_partial(weight, lanes, 0.0f);
    for (int64_t j = 0; j < n; ++j) {
      const float* vj = v + rows[block + j] * kv_stride;
      const F32x16 p = splat(weight[j]);
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) acc[d] = fma(p, load(vj + d * kLanes), acc[d]);
    }
  }
  const float total = reduce_add(sum);
  const F32x16 divisor = splat(total);
  for (int d = 0; d < D; ++d) store(out + d * kLanes, acc[d] / divisor);
  if (lse != nullptr) {
    *lse = running_max + static_cast<float>(__builtin_log(static_cast<double>(total)));
  }
}

template <int D>
inline void attention_heads(const float* q, const float* k, const float* v, const KeyIndex& index,
                            const AttentionShape& shape, float* out, float* lse, int64_t begin,
                            int64_t end) {
  const int64_t kv_stride = shape.kv_heads * shape.head_dim;
  const int64_t group = shape.heads / shape.kv_heads;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t t = item / shape.heads;
    const int64_t h = item % shape.heads;
    const int64_t kv = (h / group) * shape.head_dim;
    const int64_t at = item * shape.head_dim;
    attend<D>(q + at, k + kv, v + kv, index.rows + index.first[t], index.count[t], kv_stride,
              shape.scale, out + at, lse == nullptr ? nullptr : lse + item);
  }
}

void attention_isa(const float* q, const float* k, const float* v, const KeyIndex& index,
                   const AttentionShape& shape, float* out, float* lse, const Parallel& parallel) {
  parallel.run(shape.tokens * shape.heads, 8, [&](int64_t begin, int64_t end) {
    switch (shape.head_dim / kLanes) {
#define NIBBLE_HEAD(D)                                               \
  case D:                                                            \
    attention_heads<D>(q, k, v, index, shape, out, lse, begin, end); \
    break;
      NIBBLE_HEAD(1)
      NIBBLE_HEAD(2)
      NIBBLE_HEAD(3)
      NIBBLE_HEAD(4)
      NIBBLE_HEAD(5)
      NIBBLE_HEAD(6)
      NIBBLE_HEAD(7)
      NIBBLE_HEAD(8)
      NIBBLE_HEAD(10)
      NIBBLE_HEAD(12)
      NIBBLE_HEAD(16)
#undef NIBBLE_HEAD
      default:
        __builtin_trap();  // refused by attention(): see head_dim_is_supported
    }
  });
}

// One head of all tokens; dk and dv of this query head alone, [kv_rows, head_dim] with the stride
// of q, summed over the group afterwards.
inline void backward_head(const AttentionGradient& g, const KeyIndex& index,
                          const AttentionShape& shape, int64_t head, float* dk, float* dv) {
  const int64_t stride = shape.heads * shape.head_dim;
  const int64_t kv_stride = shape.kv_heads * shape.head_dim;
  const int64_t dim = shape.head_dim;
  const int64_t kv = head / (shape.heads / shape.kv_heads) * dim;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    const float* q = g.q + t * stride + head * dim;
    const float* dout = g.dout + t * stride + head * dim;
    const float* out = g.out + t * stride + head * dim;
    float* dq = g.dq + t * stride + head * dim;
    F32x16 delta_lanes = zero();
    for (int64_t d = 0; d < dim; d += kLanes) {
      delta_lanes = fma(load(dout + d), load(out + d), delta_lanes);
      store(dq + d, zero());
    }
    const float delta = reduce_add(delta_lanes);
    const float lse = g.lse[t * shape.heads + head];
    const int32_t* rows = index.rows + index.first[t];
    for (int64_t j = 0; j < index.count[t]; ++j) {
      const float* k = g.k + rows[j] * kv_stride + kv;
      const float* v = g.v + rows[j] * kv_stride + kv;
      F32x16 score = zero();
      F32x16 dweight = zero();
      for (int64_t d = 0; d < dim; d += kLanes) {
        score = fma(load(q + d), load(k + d), score);
        dweight = fma(load(dout + d), load(v + d), dweight);
      }
      const F32x16 p = exponential(splat(reduce_add(score) * shape.scale - lse));
      const F32x16 ds = p * splat((reduce_add(dweight) - delta) * shape.scale);
      float* dkj = dk + rows[j] * stride;
      float* dvj = dv + rows[j] * stride;
      for (int64_t d = 0; d < dim; d += kLanes) {
        store(dq + d, fma(ds, load(k + d), load(dq + d)));
        store(dkj + d, fma(ds, load(q + d), load(dkj + d)));
        store(dvj + d, fma(p, load(dout + d), load(dvj + d)));
      }
    }
  }
}

void attention_backward_isa(const AttentionGradient& g, const KeyIndex& index,
                            const AttentionShape& shape, const Parallel& parallel) {
  const int64_t dim = shape.head_dim;
  const int64_t stride = shape.heads * dim;
  const int64_t kv_stride = shape.kv_heads * dim;
  const int64_t group = shape.heads / shape.kv_heads;
  const Scratch dk(g.kv_rows * stride);
  const Scratch dv(g.kv_rows * stride);
  parallel.run(shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < g.kv_rows; ++r) {
      memset(dk.data() + r * stride + begin * dim, 0, static_cast<size_t>((end - begin) * dim) * 4);
      memset(dv.data() + r * stride + begin * dim, 0, static_cast<size_t>((end - begin) * dim) * 4);
    }
    for (int64_t h = begin; h < end; ++h) {
      backward_head(g, index, shape, h, dk.data() + h * dim, dv.data() + h * dim);
    }
  });
  parallel.run(g.kv_rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t h = 0; h < shape.kv_heads; ++h) {
        for (int64_t d = 0; d < dim; d += kLanes) {
          F32x16 sum_k = zero();
          F32x16 sum_v = zero();
          for (int64_t i = 0; i < group; ++i) {
            sum_k = sum_k + load(dk.data() + r * stride + (h * group + i) * dim + d);
            sum_v = sum_v + load(dv.data() + r * stride + (h * group + i) * dim + d);
          }
          store(g.dk + r * kv_stride + h * dim + d, sum_k);
          store(g.dv + r * kv_stride + h * dim + d, sum_v);
        }
      }
    }
  });
}

}  // namespace
}  // namespace nibble::kernels
