#include "core/kernels_cuda/log_softmax.h"

#include "core/kernels_cuda/launch.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBlockWarps = kThreads / kWarp;

// What a thread has seen of a row of scaled logits z: sums are relative to its own maximum.
struct Seen {
  float max = -INFINITY;
  float sum = 0.0f;       // of exp(z - max)
  float weighted = 0.0f;  // of exp(z - max) * (z - max)

  // Moves the sums to another maximum.
  __device__ void rebase(float other) {
    if (sum != 0.0f) {
      const float shift = max - other;
      const float factor = expf(shift);
      weighted = factor * fmaf(shift, sum, weighted);
      sum *= factor;
    }
    max = other;
  }
  template <int kCount>
  __device__ void add(const float (&logits)[kCount], float scale) {
    float top = max;
    for (const float logit : logits) top = fmaxf(top, logit * scale);
    if (top == -INFINITY) {  // nothing has weight; what is no number must show all the same
      for (const float logit : logits) sum += isnan(logit) ? logit : 0.0f;
      return;
    }
    if (top != max) rebase(top);
    for (const float logit : logits) {
      const float z = logit * scale - max;
      const float e = expf(z);
      sum += e;
      weighted = fmaf(e, z, weighted);
    }
  }
};

// Calls `visit` with the place of this thread's next logits and with them, several at a time where
// rows begin at multiples of 16 bytes.
template <typename Visit>
__device__ void for_logits(const float* logits, int64_t vocab, Visit visit) {
  constexpr int kLoads = 4;
  if (vocab % 4 != 0 || reinterpret_cast<uintptr_t>(logits) % 16 != 0) {
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) {
      const float one[1] = {logits[i]};
      visit(i, one);
    }
    return;
  }
  const auto* quads = reinterpret_cast<const float4*>(logits);
  const int64_t count = vocab / 4;
  int64_t i = threadIdx.x;
  for (; i + (kLoads - 1) * kThreads < count; i += kLoads * kThreads) {
    float4 loaded[kLoads];
    for (int k = 0; k < kLoads; ++k) loaded[k] = quads[i + k * kThreads];
    for (int k = 0; k < kLoads; ++k) {
      const float four[4] = {loaded[k].x, loaded[k].y, loaded[k].z, loaded[k].w};
      visit((i + k * kThreads) * 4, four);
    }
  }
  for (; i < count; i += kThreads) {
    const float4 quad = quads[i];
    const float four[4] = {quad.x, quad.y, quad.z, quad.w};
    visit(i * 4, four);
  }
}

// One block, one row; `scratch` has kBlockWarps floats.
__device__ RowStats row_stats(const float* logits, int64_t vocab, float temperature,
                              float (*scratch)[kBlockWarps]) {
  const float scale = 1.0f / temperature;
  Seen seen;
  for_logits(logits, vocab, [&](int64_t, const auto& some) { seen.add(some, scale); });
  RowStats stats;
  stats.max = block_max<kThreads>(seen.max, scratch[0]);
  seen.rebase(stats.max);
  const float total = block_sum<kThreads>(seen.sum, scratch[1]);
  stats.log_sum = logf(total);
  stats.entropy = stats.log_sum - block_sum<kThreads>(seen.weighted, scratch[2]) / total;
  return stats;
}

__device__ float log_prob_of(const RowStats& stats, float logit, float temperature) {
  const float scale = 1.0f / temperature;
  return (logit * scale - stats.max) - stats.log_sum;
}

__global__ void stats_kernel(const float* __restrict__ logits, int64_t vocab, float temperature,
                             RowStats* __restrict__ stats) {
  __shared__ float scratch[3][kBlockWarps];
  const RowStats mine =
      row_stats(logits + int64_t{blockIdx.x} * vocab, vocab, temperature, scratch);
  if (threadIdx.x == 0) stats[blockIdx.x] = mine;
}

__global__ void target_kernel(const float* __restrict__ logits, const RowStats* __restrict__ stats,
                              const int32_t* __restrict__ target, int64_t rows, int64_t vocab,
                              float temperature, float* __restrict__ log_prob,
                              float* __restrict__ entropy) {
  const int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (r >= rows) return;
  log_prob[r] = log_prob_of(stats[r], logits[r * vocab + target[r]], temperature);
  entropy[r] = stats[r].entropy;
}

// BF16 values that are written at once.
template <int kCount>
struct alignas(kCount * 2) Halves {
  uint16_t value[kCount];
};

__global__ void backward_kernel(const float* __restrict__ logits,
                                const RowStats* __restrict__ stats,
                                const int32_t* __restrict__ target, RowGrads grads, int64_t vocab,
                                float temperature, uint16_t* __restrict__ dlogits) {
  const int64_t r = blockIdx.x;
  logits += r * vocab;
  dlogits += r * vocab;
  const float scale = 1.0f / temperature;
  const float shift = stats[r].max + stats[r].log_sum;
  const float g = grads.log_prob[r] * scale;
  const bool has_entropy = grads.entropy != nullptr;
  const float e = has_entropy ? grads.entropy[r] * scale : 0.0f;
  const float entropy = stats[r].entropy;
  const int64_t wanted = target[r];
  for_logits(logits, vocab, [&](int64_t first, const auto& some) {
    constexpr int kCount = sizeof(some) / sizeof(float);
    Halves<kCount> out;
    for (int k = 0; k < kCount; ++k) {
      const float log_p = some[k] * scale - shift;
      const float p = expf(log_p);
      float gradient = g * ((first + k == wanted ? 1.0f : 0.0f) - p);
      if (has_entropy) gradient -= e * p * (log_p + entropy);
      out.value[k] = to_bf16(gradient);
    }
    *reinterpret_cast<Halves<kCount>*>(dlogits + first) = out;
  });
}

// Order-preserving map of floats to unsigned integers, and back.
__device__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ float unordered(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

__device__ double warp_sum_double(double x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

__device__ double block_sum_double(double x, double* scratch) {
  x = warp_sum_double(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0.0;
  for (int w = 0; w < kBlockWarps; ++w) sum += scratch[w];
  return sum;
}

// One row being sampled from; every thread of the block holds the same values.
struct Row {
  const float* logits;
  int64_t vocab;
  float scale;  // 1 / temperature
  float max;    // of scaled logits
  double* scratch;

  __device__ float weight(float logit) const { return expf(logit * scale - max); }

  // Sum over tokens whose logit is at least `floor` of their weight, or of 1.
  __device__ double mass(float floor, bool counted) const {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < vocab; i += kThreads) {
      if (logits[i] >= floor) sum += counted ? 1.0 : static_cast<double>(weight(logits[i]));
    }
    return block_sum_double(sum, scratch);
  }

  // The largest floor whose mass is at least `wanted`, by bisection over all floats.
  __device__ float floor_of(double wanted, bool counted) const {
    uint32_t low = ordered(-INFINITY);
    uint32_t high = ordered(INFINITY);
    while (high - low > 1) {
      const uint32_t middle = low + (high - low) / 2;
      if (mass(unordered(middle), counted) >= wanted) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return unordered(low);
  }

  __device__ float floor_for(const DrawSpec& draw) const {
    float floor = -INFINITY;
    const bool limited = draw.top_k > 0 && draw.top_k < vocab;
    if (limited) floor = floor_of(draw.top_k, true);
    if (draw.top_p >= 1.0f) return floor;
    double total = mass(floor, false);
    // Of equal logits at the edge top-k counts only as many as it has room for.
    if (limited) total -= (mass(floor, true) - draw.top_k) * static_cast<double>(weight(floor));
    return fmaxf(floor, floor_of(static_cast<double>(draw.top_p) * total, false));
  }

  __device__ int64_t warp_begin(int warp) const {
    const int64_t share = (vocab + kThreads - 1) / kThreads * kWarp;
    return share * warp < vocab ? share * warp : vocab;
  }
};

// Where the cumulative weight of tokens at or above `floor`, in token order, passes
// uniform * total. Warps own consecutive ranges.
__device__ int32_t invert(const Row& row, float floor, double uniform, int32_t* answer) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t begin = row.warp_begin(warp), end = row.warp_begin(warp + 1);
  const auto weight_at = [&](int64_t i) {
    return i < end && row.logits[i] >= floor ? static_cast<double>(row.weight(row.logits[i])) : 0.0;
  };
  double sum = 0.0;
  int32_t last = -1;  // the last token of this lane that may be drawn
  for (int64_t i = begin + lane; i < end; i += kWarp) {
    const double w = weight_at(i);
    sum += w;
    if (w > 0.0) last = static_cast<int32_t>(i);
  }
  sum = warp_sum_double(sum);
  __syncthreads();
  if (threadIdx.x == 0) *answer = -1;
  if (lane == 0) row.scratch[warp] = sum;
  __syncthreads();
  atomicMax(answer, last);  // rounding may leave the target past the end
  double total = 0.0, before = 0.0;
  for (int w = 0; w < kBlockWarps; ++w) {
    if (w == warp) before = total;
    total += row.scratch[w];
  }
  __syncthreads();
  const double target = uniform * total;
  if (before <= target && target < before + sum) {
    for (int64_t i = begin; i < end; i += kWarp) {
      double reach = weight_at(i + lane);
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const double other = __shfl_up_sync(kAllLanes, reach, offset);
        if (lane >= offset) reach += other;
      }
      const unsigned passed = __ballot_sync(kAllLanes, before + reach > target);
      if (passed != 0) {
        if (lane == 0) *answer = static_cast<int32_t>(i + __ffs(static_cast<int>(passed)) - 1);
        break;
      }
      before += __shfl_sync(kAllLanes, reach, kWarp - 1);
    }
  }
  __syncthreads();
  return *answer;
}

__device__ int32_t highest(const float* logits, int64_t vocab, float max, int32_t* answer) {
  if (threadIdx.x == 0) *answer = 0x7fffffff;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < vocab; i += kThreads) {
    if (logits[i] == max) {
      atomicMin(answer, static_cast<int32_t>(i));
      break;
    }
  }
  __syncthreads();
  return *answer;
}

__global__ void __launch_bounds__(kThreads)
    sample_kernel(const float* __restrict__ logits, int64_t vocab,
                  const DrawSpec* __restrict__ draws, DrawResult* __restrict__ results) {
  __shared__ float scratch[3][kBlockWarps];
  __shared__ double sums[kBlockWarps];
  __shared__ int32_t answer;
  const DrawSpec draw = draws[blockIdx.x];
  logits += int64_t{draw.row} * vocab;
  const bool greedy = draw.temperature == 0.0f;
  const float temperature = greedy ? 1.0f : draw.temperature;
  const RowStats stats = row_stats(logits, vocab, temperature, scratch);
  int32_t token;
  if (draw.given >= 0) {
    token = draw.given;
  } else if (greedy) {
    token = highest(logits, vocab, stats.max, &answer);
  } else {
    const Row row{logits, vocab, 1.0f / temperature, stats.max, sums};
    token = invert(row, row.floor_for(draw), draw.uniform, &answer);
  }
  if (threadIdx.x == 0) {
    // No logit is a number: token 0, as on a CPU, and a log-probability that says so.
    if (token < 0 || token >= vocab) token = 0;
    results[blockIdx.x] = {token, log_prob_of(stats, logits[token], temperature)};
  }
}

}  // namespace

void log_softmax_stats(const float* logits, int64_t rows, int64_t vocab, float temperature,
                       RowStats* stats, cudaStream_t stream) {
  if (rows == 0) return;
  stats_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(logits, vocab, temperature,
                                                                     stats);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void target_log_probs(const float* logits, const RowStats* stats, const int32_t* target,
                      int64_t rows, int64_t vocab, float temperature, float* log_prob,
                      float* entropy, cudaStream_t stream) {
  if (rows == 0) return;
  target_kernel<<<grid_size(rows, kThreads, int64_t{1} << 30), kThreads, 0, stream>>>(
      logits, stats, target, rows, vocab, temperature, log_prob, entropy);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void log_prob_backward(const float* logits, const RowStats* stats, const int32_t* target,
                       const RowGrads& grads, int64_t rows, int64_t vocab, float temperature,
                       uint16_t* dlogits, cudaStream_t stream) {
  if (rows == 0) return;
  backward_kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(
      logits, stats, target, grads, vocab, temperature, dlogits);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void sample(const float* logits, int64_t vocab, const DrawSpec* draws, int64_t count,
            DrawResult* results, cudaStream_t stream) {
  if (count == 0) return;
  sample_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(logits, vocab, draws,
                                                                       results);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace nibble::kernels::cuda
