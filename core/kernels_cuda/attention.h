#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/kernels/attention.h"

namespace nibble::kernels::cuda {

/// Causal softmax attention over a row index, for training and the paged cache alike. A token's
/// result depends on its own keys and their absolute positions only: not on the batch, on chunks,
/// on paging or on which rows hold the keys.
///   q    device BF16 bits [tokens, heads * head_dim]
///   k,v  device BF16 bits [rows, kv_heads * head_dim]
///   index  device arrays; a count of 0 leaves the token's output 0
///   out  device BF16 bits [tokens, heads * head_dim], overwritten
///   lse  device float32 [heads, tokens], overwritten unless null: log sum exp of scaled scores
/// Throws Error{kUnimplemented} unless head_dim is 16, 32, 64, 80, 96 or 128.
void attention(const uint16_t* q, const uint16_t* k, const uint16_t* v, const KeyIndex& index,
               const AttentionShape& shape, uint16_t* out, float* lse, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
