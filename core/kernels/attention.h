#pragma once

#include <cstdint>

#include "core/kernels/parallel.h"

namespace nibble::kernels {

struct AttentionShape {
  int64_t tokens = 0;  ///< query tokens
  int64_t heads = 0;
  int64_t kv_heads = 0;  ///< divides heads
  int64_t head_dim = 0;  ///< multiple of 16, at most 256
  float scale = 1.0f;    ///< on q . k, usually head_dim^-0.5
};

/// Which rows of the key and value arrays a query token sees, by absolute position: query t sees
/// rows[first[t] + p] for p in [0, count[t]). The same for packed training sequences (shared
/// prompts included) and for the engine's paged cache.
struct KeyIndex {
  const int32_t* rows = nullptr;
  const int64_t* first = nullptr;  ///< [tokens]
  const int32_t* count = nullptr;  ///< [tokens], each >= 1
};

/// Causal softmax attention with an online softmax over blocks of 16 keys by absolute position,
/// so a token's result depends on nothing but its own keys: not on batch, chunking or paging.
///   q    float32 [tokens, heads * head_dim]
///   k,v  float32 [rows, kv_heads * head_dim]
///   out  float32 [tokens, heads * head_dim], overwritten
///   lse  float32 [tokens, heads], overwritten unless null: log sum exp of the scaled scores
void attention(const float* q, const float* k, const float* v, const KeyIndex& index,
               const AttentionShape& shape, float* out, float* lse, const Parallel& parallel);

/// What attention_backward reads and writes; shapes as in attention().
struct AttentionGradient {
  const float* q;
  const float* k;
  const float* v;
  const float* out;
  const float* lse;
  const float* dout;
  float* dq;        ///< overwritten
  float* dk;        ///< [kv_rows_in_arrays, kv_heads * head_dim], overwritten
  float* dv;        ///< like dk
  int64_t kv_rows;  ///< rows of k and v
};
void attention_backward(const AttentionGradient& gradient, const KeyIndex& index,
                        const AttentionShape& shape, const Parallel& parallel);

}  // namespace nibble::kernels
