#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/kernels/rope.h"
#include "core/kernels_cuda/device_weight.h"

// Arrays are device BF16 bits unless said otherwise; arithmetic is float32, rounded once.

namespace nibble::kernels::cuda {

/// out[t] = table[ids[t]].
///   ids    device int32 [tokens], each a row of table
///   table  BF16 [vocab, cols]; cols a multiple of 8
///   out    [tokens, cols]
void embed(const int32_t* ids, const DeviceWeight& table, int64_t tokens, uint16_t* out,
           cudaStream_t stream);

/// out[i] = x[rows[i]], rows of `cols`; cols a multiple of 8.
///   rows  device int32 [count]
void gather_rows(const uint16_t* x, const int32_t* rows, int64_t count, int64_t cols, uint16_t* out,
                 cudaStream_t stream);

/// table[index[i]] = value[i].
///   index  device int64 [count], distinct
void scatter_values(const int64_t* index, const int32_t* value, int64_t count, int32_t* table,
                    cudaStream_t stream);

/// sum += x, both [count]; count a multiple of 8.
void add(uint16_t* sum, const uint16_t* x, int64_t count, cudaStream_t stream);

/// x *= factor; x [count], count a multiple of 8.
void scale(uint16_t* x, float factor, int64_t count, cudaStream_t stream);

/// out = silu(gate) * up, all [count]; count a multiple of 8. `out` may be `gate` or `up`.
void silu_mul(const uint16_t* gate, const uint16_t* up, int64_t count, uint16_t* out,
              cudaStream_t stream);
/// dgate and dup (overwritten) from dout, all [count]; count a multiple of 8.
void silu_mul_backward(const uint16_t* gate, const uint16_t* up, const uint16_t* dout,
                       int64_t count, uint16_t* dgate, uint16_t* dup, cudaStream_t stream);

/// Rotates pairs (i, i + half) of every head; backward turns the other way.
///   x, y      [tokens, heads, 2 * half], may be the same array
///   position  device int32 [tokens], each in [0, table.num_positions)
///   table     device arrays
void rope(const uint16_t* x, uint16_t* y, const int32_t* position, int64_t tokens, int64_t heads,
          const RopeTable& table, RopeDirection direction, cudaStream_t stream);

/// cache[slot[t]] = x[t], rows of `cols`; cols a multiple of 8.
///   slot  device int32 [tokens]; a negative one is skipped
void scatter_rows(const uint16_t* x, const int32_t* slot, int64_t tokens, int64_t cols,
                  uint16_t* cache, cudaStream_t stream);

}  // namespace nibble::kernels::cuda
