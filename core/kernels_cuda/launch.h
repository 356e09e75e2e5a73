#pragma once

// What every .cu file of this folder shares. Included by .cu files only.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/cuda/check.h"

namespace nibble::kernels::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float to_float(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }
__device__ inline uint16_t to_bf16(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

/// Eight BF16 values in one 16-byte access.
struct alignas(16) Bf16x8 {
  uint16_t value[8];
};
__device__ inline Bf16x8 load8(const uint16_t* at) { return *reinterpret_cast<const Bf16x8*>(at); }
__device__ inline void store8(uint16_t* at, const Bf16x8& x) { *reinterpret_cast<Bf16x8*>(at) = x; }

/// Sum over a warp in a fixed tree; every lane gets it.
__device__ inline float warp_sum(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

/// Sum over a block of kThreads in a fixed tree; every thread gets it. `scratch` has a float a
/// warp; a barrier must separate two uses of it.
template <int kThreads>
__device__ inline float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if constexpr (kThreads == kWarp) return x;
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kThreads / kWarp; ++w) sum += scratch[w];
  return sum;
}
template <int kThreads>
__device__ inline float block_max(float x, float* scratch) {
  x = warp_max(x);
  if constexpr (kThreads == kWarp) return x;
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  float top = scratch[0];
  for (int w = 1; w < kThreads / kWarp; ++w) top = fmaxf(top, scratch[w]);
  return top;
}

/// Blocks for a grid-stride loop.
inline unsigned grid_size(int64_t items, int64_t per_block, int64_t max_blocks = 1 << 16) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks);
}

}  // namespace nibble::kernels::cuda
