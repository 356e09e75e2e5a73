#include "core/kernels_cuda/runs.h"

#include "core/kernels_cuda/launch.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__device__ void store_sum(uint16_t* out, const float (&sum)[8]) {
  Bf16x8 rounded;
  for (int k = 0; k < 8; ++k) rounded.value[k] = to_bf16(sum[k]);
  store8(out, rounded);
}
__device__ void store_sum(float* out, const float (&sum)[8]) {
  for (int k = 0; k < 8; ++k) out[k] += sum[k];
}

// A block a value; a thread eight columns.
template <typename Out, bool kSkipEmpty>
__global__ void runs_kernel(const uint16_t* __restrict__ x, Runs runs, int64_t cols, int64_t skip,
                            Out* __restrict__ out) {
  const int64_t v = blockIdx.x;
  const int32_t begin = runs.begin[v], end = runs.begin[v + 1];
  if ((kSkipEmpty && begin == end) || v == skip) return;
  for (int64_t c = threadIdx.x * 8; c < cols; c += kThreads * 8) {
    float sum[8] = {};
    for (int32_t i = begin; i < end; ++i) {
      const Bf16x8 row = load8(x + runs.places[i] * cols + c);
      for (int k = 0; k < 8; ++k) sum[k] += to_float(row.value[k]);
    }
    store_sum(out + v * cols + c, sum);
  }
}

}  // namespace

void sum_runs(const uint16_t* x, const Runs& runs, int64_t cols, uint16_t* out,
              cudaStream_t stream) {
  if (runs.num_values == 0) return;
  runs_kernel<uint16_t, false>
      <<<static_cast<unsigned>(runs.num_values), kThreads, 0, stream>>>(x, runs, cols, -1, out);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void add_runs(const uint16_t* x, const Runs& runs, int64_t cols, int64_t skip, float* out,
              cudaStream_t stream) {
  if (runs.num_values == 0) return;
  runs_kernel<float, true>
      <<<static_cast<unsigned>(runs.num_values), kThreads, 0, stream>>>(x, runs, cols, skip, out);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace nibble::kernels::cuda
