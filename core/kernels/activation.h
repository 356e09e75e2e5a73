#pragma once

#include <cstdint>

#include "core/kernels/parallel.h"

namespace nibble::kernels {

/// out = silu(gate) * up over `count` floats (SwiGLU); out may be gate.
void silu_mul(const float* gate, const float* up, int64_t count, float* out,
              const Parallel& parallel);

/// Gradients of silu_mul; dgate and dup are overwritten.
void silu_mul_backward(const float* gate, const float* up, const float* dout, int64_t count,
                       float* dgate, float* dup, const Parallel& parallel);

/// x += y over `count` floats.
void add(float* x, const float* y, int64_t count, const Parallel& parallel);

/// Rounds `count` finite floats to BF16 values in place (--dtype bfloat16).
void round_to_bf16(float* x, int64_t count, const Parallel& parallel);

/// out[t] = table[id[t]] widened.
///   id     int32 [tokens], each in [0, table rows)
///   table  BF16 bits [rows, cols]; cols a multiple of 16
void embed(const int32_t* id, int64_t tokens, const uint16_t* table, int64_t cols, float* out,
           const Parallel& parallel);

/// dtable[id[t]] += dout[t] in token order, but for tokens equal to `padding` (-1: none), whose
/// rows get no gradient from being looked up (torch.nn.Embedding's padding_idx).
///   dtable  float32 [rows, cols]
void embed_backward(const int32_t* id, int64_t tokens, int32_t padding, const float* dout,
                    int64_t cols, float* dtable, const Parallel& parallel);

}  // namespace nibble::kernels
