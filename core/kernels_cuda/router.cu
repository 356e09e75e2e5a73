#include "core/kernels_cuda/router.h"

#include <string>

#include "core/base/error.h"
#include "core/kernels_cuda/launch.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kMaxPerLane = 32;  // experts of a lane: 1024 in all
constexpr int kThreads = 256;

// The larger value, ties to the lower index, over a warp.
__device__ void warp_best(float& value, int& index) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float v = __shfl_xor_sync(kAllLanes, value, offset);
    const int i = __shfl_xor_sync(kAllLanes, index, offset);
    if (v > value || (v == value && i < index)) {
      value = v;
      index = i;
    }
  }
}

// One warp a token; lane l holds experts l, l + 32, ...
__global__ void top_k_kernel(const float* __restrict__ logits, RouterShape shape, RouterMode mode,
                             float* __restrict__ prob, int32_t* __restrict__ expert,
                             float* __restrict__ weight) {
  const int64_t t = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (t >= shape.tokens) return;
  const float* row = logits + t * shape.experts;
  float* p = prob + t * shape.experts;
  int32_t* chosen = expert + t * shape.top_k;
  float* w = weight + t * shape.top_k;
  float top = -INFINITY;
  for (int64_t e = lane; e < shape.experts; e += kWarp) top = fmaxf(top, row[e]);
  top = warp_max(top);
  float sum = 0.0f;
  for (int64_t e = lane; e < shape.experts; e += kWarp) sum += expf(row[e] - top);
  sum = warp_sum(sum);
  for (int64_t e = lane; e < shape.experts; e += kWarp) p[e] = expf(row[e] - top) / sum;
  __syncwarp();
  uint32_t taken = 0;  // bit i: expert lane + 32 i
  float total = 0.0f;
  for (int64_t s = 0; s < shape.top_k; ++s) {
    int best = mode == RouterMode::kReplay ? chosen[s] : 0x7fffffff;
    if (mode == RouterMode::kChoose) {
      // A probability that is not a number counts less than any other, and still is an expert's.
      float value = -2.0f;
      for (int i = 0; i * kWarp + lane < shape.experts; ++i) {
        if ((taken >> i & 1u) != 0) continue;
        const float probability = isnan(p[i * kWarp + lane]) ? -1.0f : p[i * kWarp + lane];
        if (probability > value) {
          value = probability;
          best = i * kWarp + lane;
        }
      }
      warp_best(value, best);
      if (best % kWarp == lane) taken |= 1u << (best / kWarp);
      if (lane == 0) chosen[s] = best;
    }
    total += p[best];
    if (lane == 0) w[s] = p[best];
  }
  if (!shape.normalize || lane != 0) return;
  for (int64_t s = 0; s < shape.top_k; ++s) w[s] = w[s] / total;
}

__global__ void backward_kernel(const float* __restrict__ prob, const int32_t* __restrict__ expert,
                                const float* __restrict__ dweight, RouterShape shape,
                                float* __restrict__ dlogits) {
  const int64_t t = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (t >= shape.tokens) return;
  const float* p = prob + t * shape.experts;
  const int32_t* chosen = expert + t * shape.top_k;
  const float* dw = dweight + t * shape.top_k;
  float* dl = dlogits + t * shape.experts;
  float sum = 0.0f, pull = 0.0f;
  for (int64_t s = 0; s < shape.top_k; ++s) {
    sum += p[chosen[s]];
    pull = fmaf(dw[s], p[chosen[s]], pull);
  }
  const float divisor = shape.normalize ? sum : 1.0f;
  const float mean = shape.normalize ? pull / sum : 0.0f;
  float inner = 0.0f;
  for (int64_t s = 0; s < shape.top_k; ++s) inner += p[chosen[s]] * (dw[s] - mean) / divisor;
  for (int64_t e = lane; e < shape.experts; e += kWarp) {
    float direct = 0.0f;
    for (int64_t s = 0; s < shape.top_k; ++s) {
      if (chosen[s] == e) direct = (dw[s] - mean) / divisor;
    }
    dl[e] = p[e] * (direct - inner);
  }
}

// One block an expert: counts the pairs of lower experts, then writes its own in order.
__global__ void order_kernel(const int32_t* __restrict__ expert, int64_t pairs,
                             int32_t* __restrict__ begin, int32_t* __restrict__ pair) {
  __shared__ int32_t warp_count[kThreads / kWarp];
  __shared__ int32_t next;
  const int mine = static_cast<int>(blockIdx.x);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int32_t lower = 0;
  for (int64_t i = threadIdx.x; i < pairs; i += kThreads) lower += expert[i] < mine ? 1 : 0;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    lower += __shfl_xor_sync(kAllLanes, lower, offset);
  }
  if (lane == 0) warp_count[warp] = lower;
  __syncthreads();
  if (threadIdx.x == 0) {
    next = 0;
    for (int w = 0; w < kThreads / kWarp; ++w) next += warp_count[w];
    begin[mine] = next;
    if (blockIdx.x + 1 == gridDim.x) begin[mine + 1] = static_cast<int32_t>(pairs);
  }
  __syncthreads();
  for (int64_t base = 0; base < pairs; base += kThreads) {
    const int64_t i = base + threadIdx.x;
    const bool hit = i < pairs && expert[i] == mine;
    const unsigned hits = __ballot_sync(kAllLanes, hit);
    if (lane == 0) warp_count[warp] = __popc(hits);
    __syncthreads();
    int32_t at = next + __popc(hits & ((1u << lane) - 1u));
    int32_t all = 0;
    for (int w = 0; w < kThreads / kWarp; ++w) {
      if (w < warp) at += warp_count[w];
      all += warp_count[w];
    }
    if (hit) pair[at] = static_cast<int32_t>(i);
    __syncthreads();
    if (threadIdx.x == 0) next += all;
    __syncthreads();
  }
}

__global__ void gather_kernel(const uint16_t* __restrict__ x, const int32_t* __restrict__ pair,
                              int64_t count, int64_t top_k, int64_t cols,
                              uint16_t* __restrict__ out) {
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8; i < count;
       i += int64_t{gridDim.x} * kThreads * 8) {
    store8(out + i, load8(x + pair[i / cols] / top_k * cols + i % cols));
  }
}

__global__ void combine_kernel(const uint16_t* __restrict__ part, const int32_t* __restrict__ place,
                               const float* __restrict__ weight, int64_t count, int64_t top_k,
                               int64_t cols, uint16_t* __restrict__ y) {
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8; i < count;
       i += int64_t{gridDim.x} * kThreads * 8) {
    const int64_t t = i / cols;
    float sum[8] = {};
    for (int64_t s = 0; s < top_k; ++s) {
      const float w = weight != nullptr ? weight[t * top_k + s] : 1.0f;
      const Bf16x8 v = load8(part + int64_t{place[t * top_k + s]} * cols + i % cols);
      for (int k = 0; k < 8; ++k) sum[k] = fmaf(w, to_float(v.value[k]), sum[k]);
    }
    Bf16x8 out;
    for (int k = 0; k < 8; ++k) out.value[k] = to_bf16(sum[k]);
    store8(y + i, out);
  }
}

__global__ void gather_scaled_kernel(const uint16_t* __restrict__ x,
                                     const int32_t* __restrict__ pair,
                                     const float* __restrict__ scale, int64_t count, int64_t top_k,
                                     int64_t cols, uint16_t* __restrict__ out) {
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8; i < count;
       i += int64_t{gridDim.x} * kThreads * 8) {
    const int32_t p = pair[i / cols];
    Bf16x8 v = load8(x + p / top_k * cols + i % cols);
    for (int k = 0; k < 8; ++k) v.value[k] = to_bf16(scale[p] * to_float(v.value[k]));
    store8(out + i, v);
  }
}

// One warp a pair.
__global__ void dots_kernel(const uint16_t* __restrict__ part, const int32_t* __restrict__ place,
                            const uint16_t* __restrict__ dy, int64_t pairs, int64_t top_k,
                            int64_t cols, float* __restrict__ dot) {
  const int64_t p = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (p >= pairs) return;
  const uint16_t* row = part + int64_t{place[p]} * cols;
  const uint16_t* gradient = dy + p / top_k * cols;
  float sum = 0.0f;
  for (int64_t c = threadIdx.x % kWarp * 8; c < cols; c += kWarp * 8) {
    const Bf16x8 a = load8(row + c), b = load8(gradient + c);
    for (int k = 0; k < 8; ++k) sum = fmaf(to_float(a.value[k]), to_float(b.value[k]), sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) dot[p] = sum;
}

__global__ void invert_kernel(const int32_t* __restrict__ pair, int64_t pairs,
                              int32_t* __restrict__ place) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < pairs) place[pair[i]] = static_cast<int32_t>(i);
}

unsigned warps_grid(int64_t tokens) {
  return grid_size(tokens, kThreads / kWarp, int64_t{1} << 30);
}

}  // namespace

void router_top_k(const float* logits, const RouterShape& shape, RouterMode mode, float* prob,
                  int32_t* expert, float* weight, cudaStream_t stream) {
  if (shape.experts > kWarp * kMaxPerLane) {
    throw Error(
        ErrorCode::kUnimplemented,
        std::to_string(shape.experts) + " experts are more than the CUDA router takes (1024)");
  }
  if (shape.tokens == 0) return;
  top_k_kernel<<<warps_grid(shape.tokens), kThreads, 0, stream>>>(logits, shape, mode, prob, expert,
                                                                  weight);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void router_backward(const float* prob, const int32_t* expert, const float* dweight,
                     const RouterShape& shape, float* dlogits, cudaStream_t stream) {
  if (shape.tokens == 0) return;
  backward_kernel<<<warps_grid(shape.tokens), kThreads, 0, stream>>>(prob, expert, dweight, shape,
                                                                     dlogits);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void order_by_expert(const int32_t* expert, int64_t pairs, int64_t num_experts, int32_t* begin,
                     int32_t* pair, cudaStream_t stream) {
  order_kernel<<<static_cast<unsigned>(num_experts), kThreads, 0, stream>>>(expert, pairs, begin,
                                                                            pair);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void gather_pairs(const uint16_t* x, const int32_t* pair, int64_t pairs, int64_t top_k,
                  int64_t cols, uint16_t* out, cudaStream_t stream) {
  const int64_t count = pairs * cols;
  if (count == 0) return;
  gather_kernel<<<grid_size(count, kThreads * 8), kThreads, 0, stream>>>(x, pair, count, top_k,
                                                                         cols, out);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void combine_experts(const uint16_t* part, const int32_t* place, const float* weight,
                     int64_t tokens, int64_t top_k, int64_t cols, uint16_t* y,
                     cudaStream_t stream) {
  const int64_t count = tokens * cols;
  if (count == 0) return;
  combine_kernel<<<grid_size(count, kThreads * 8), kThreads, 0, stream>>>(part, place, weight,
                                                                          count, top_k, cols, y);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void gather_scaled_pairs(const uint16_t* x, const int32_t* pair, const float* scale, int64_t pairs,
                         int64_t top_k, int64_t cols, uint16_t* out, cudaStream_t stream) {
  const int64_t count = pairs * cols;
  if (count == 0) return;
  gather_scaled_kernel<<<grid_size(count, kThreads * 8), kThreads, 0, stream>>>(
      x, pair, scale, count, top_k, cols, out);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void pair_dots(const uint16_t* part, const int32_t* place, const uint16_t* dy, int64_t tokens,
               int64_t top_k, int64_t cols, float* dot, cudaStream_t stream) {
  if (tokens == 0) return;
  dots_kernel<<<warps_grid(tokens * top_k), kThreads, 0, stream>>>(part, place, dy, tokens * top_k,
                                                                   top_k, cols, dot);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void invert_pairs(const int32_t* pair, int64_t pairs, int32_t* place, cudaStream_t stream) {
  if (pairs == 0) return;
  invert_kernel<<<grid_size(pairs, kThreads, int64_t{1} << 30), kThreads, 0, stream>>>(pair, pairs,
                                                                                       place);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace nibble::kernels::cuda
