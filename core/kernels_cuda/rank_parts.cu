#include "core/kernels_cuda/launch.h"
#include "core/kernels_cuda/rank_parts.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Eight values a thread.
__global__ void join_columns_kernel(const uint16_t* __restrict__ parts, int64_t ranks,
                                    int64_t tokens, int64_t cols, uint16_t* __restrict__ out) {
  const int64_t count = ranks * tokens * cols;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8; i < count;
       i += int64_t{gridDim.x} * kThreads * 8) {
    const int64_t token = i / (ranks * cols);
    const int64_t rank = i / cols % ranks;
    store8(out + i, load8(parts + (rank * tokens + token) * cols + i % cols));
  }
}

__global__ void join_logits_kernel(const float* __restrict__ parts, int64_t rows, int64_t cols,
                                   int64_t whole, float* __restrict__ out) {
  const int64_t count = rows * whole;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t row = i / whole;
    const int64_t rank = i % whole / cols;
    const int64_t begin = min(rank * cols, whole - cols);
    out[i] = parts[(rank * rows + row) * cols + i % whole - begin];
  }
}

__global__ void places_from_holders_kernel(const int32_t* __restrict__ expert, int64_t pairs,
                                           int64_t experts_a_rank, int64_t stride,
                                           int32_t* __restrict__ place) {
  const int64_t p = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (p < pairs) place[p] = static_cast<int32_t>(expert[p] / experts_a_rank * stride + p);
}

}  // namespace

void join_columns(const uint16_t* parts, int64_t ranks, int64_t tokens, int64_t cols, uint16_t* out,
                  cudaStream_t stream) {
  const int64_t count = ranks * tokens * cols;
  if (count == 0) return;
  join_columns_kernel<<<grid_size(count, kThreads * 8), kThreads, 0, stream>>>(parts, ranks, tokens,
                                                                               cols, out);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void join_logits(const float* parts, int64_t rows, int64_t cols, int64_t whole, float* out,
                 cudaStream_t stream) {
  if (rows == 0) return;
  join_logits_kernel<<<grid_size(rows * whole, kThreads), kThreads, 0, stream>>>(parts, rows, cols,
                                                                                 whole, out);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void places_from_holders(const int32_t* expert, int64_t pairs, int64_t experts_a_rank,
                         int64_t stride, int32_t* place, cudaStream_t stream) {
  if (pairs == 0) return;
  places_from_holders_kernel<<<grid_size(pairs, kThreads, int64_t{1} << 30), kThreads, 0, stream>>>(
      expert, pairs, experts_a_rank, stride, place);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace nibble::kernels::cuda
