#include "core/kernels_cuda/attention.h"

#include <string>

#include "core/base/error.h"
#include "core/kernels_cuda/launch.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kKeys = 32;  // a block of keys by absolute position: one a lane
constexpr float kLog2E = 1.4426950408889634f;

// What a warp has of its share of the keys: online softmax in base 2.
template <int kDim, int kHeads>
struct Partial {
  static constexpr int kPerLane = (kDim + kWarp - 1) / kWarp;
  float max[kHeads];
  float sum[kHeads];
  float acc[kHeads][kPerLane];  // dims lane, lane + 32, ...
};

template <int kDim, int kHeads>
struct Scratch {
  float q[kHeads][kDim];
  float weight[kWarps][kHeads][kKeys];
  float max[kWarps][kHeads];
  float sum[kWarps][kHeads];
  float acc[kWarps][kHeads][kDim];
};

// scores[h] of this lane's key.
template <int kDim, int kHeads>
__device__ void score_key(const uint16_t* key, const float (*q)[kDim], float* scores) {
  for (int h = 0; h < kHeads; ++h) scores[h] = 0.0f;
#pragma unroll 2
  for (int d = 0; d < kDim; d += 8) {
    const Bf16x8 k8 = load8(key + d);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float x = to_float(k8.value[i]);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) scores[h] = fmaf(q[h][d + i], x, scores[h]);
    }
  }
}

// One block a token and kHeads query heads that share a key head. Warp w takes key blocks w,
// w + 4, ...; the partial results are merged in warp order. Everything that depends on the order
// follows from the number of keys.
template <int kDim, int kHeads>
__global__ void __launch_bounds__(kWarps* kWarp)
    attention_kernel(const uint16_t* __restrict__ q, const uint16_t* __restrict__ k,
                     const uint16_t* __restrict__ v, KeyIndex index, AttentionShape shape,
                     uint16_t* __restrict__ out, float* __restrict__ lse) {
  __shared__ Scratch<kDim, kHeads> s;
  const int64_t token = blockIdx.x;
  const int64_t first_head = int64_t{blockIdx.y} * kHeads;
  const int64_t kv_head = first_head / (shape.heads / shape.kv_heads);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = shape.kv_heads * kDim;
  const int32_t* rows = index.rows + index.first[token];
  const int count = index.count[token];
  q += (token * shape.heads + first_head) * kDim;
  for (int i = threadIdx.x; i < kHeads * kDim; i += kWarps * kWarp) {
    s.q[i / kDim][i % kDim] = to_float(q[i]) * (shape.scale * kLog2E);
  }
  __syncthreads();

  using Mine = Partial<kDim, kHeads>;
  Mine mine;
  for (int h = 0; h < kHeads; ++h) {
    mine.max[h] = -INFINITY;
    mine.sum[h] = 0.0f;
    for (int i = 0; i < Mine::kPerLane; ++i) mine.acc[h][i] = 0.0f;
  }
  for (int begin = warp * kKeys; begin < count; begin += kWarps * kKeys) {
    const bool active = begin + lane < count;
    const int32_t row = active ? rows[begin + lane] : rows[begin];
    float scores[kHeads];
    score_key<kDim, kHeads>(k + row * stride + kv_head * kDim, s.q, scores);
    for (int h = 0; h < kHeads; ++h) {
      const float score = active ? scores[h] : -INFINITY;
      const float top = fmaxf(mine.max[h], warp_max(score));
      const float weight = active ? exp2f(score - top) : 0.0f;
      const float shrink = exp2f(mine.max[h] - top);
      mine.max[h] = top;
      mine.sum[h] = fmaf(mine.sum[h], shrink, warp_sum(weight));
      for (int i = 0; i < Mine::kPerLane; ++i) mine.acc[h][i] *= shrink;
      s.weight[warp][h][lane] = weight;
    }
    __syncwarp();
    const int last = count - begin < kKeys ? count - begin : kKeys;
    for (int j = 0; j < last; ++j) {
      const uint16_t* value = v + __shfl_sync(kAllLanes, row, j) * stride + kv_head * kDim;
#pragma unroll
      for (int i = 0; i < Mine::kPerLane; ++i) {
        const int d = i * kWarp + lane;
        const float x = d < kDim ? to_float(value[d]) : 0.0f;
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          mine.acc[h][i] = fmaf(s.weight[warp][h][j], x, mine.acc[h][i]);
        }
      }
    }
    __syncwarp();
  }
  for (int h = 0; h < kHeads; ++h) {
    if (lane == 0) {
      s.max[warp][h] = mine.max[h];
      s.sum[warp][h] = mine.sum[h];
    }
    for (int i = 0; i < Mine::kPerLane; ++i) {
      if (i * kWarp + lane < kDim) s.acc[warp][h][i * kWarp + lane] = mine.acc[h][i];
    }
  }
  __syncthreads();
  out += (token * shape.heads + first_head) * kDim;
  for (int i = threadIdx.x; i < kHeads * kDim; i += kWarps * kWarp) {
    const int h = i / kDim;
    float top = -INFINITY;
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, s.max[w][h]);
    float sum = 0.0f;
    float acc = 0.0f;
    for (int w = 0; w < kWarps && count > 0; ++w) {
      const float part = exp2f(s.max[w][h] - top);
      sum = fmaf(s.sum[w][h], part, sum);
      acc = fmaf(s.acc[w][h][i % kDim], part, acc);
    }
    out[i] = to_bf16(count > 0 ? acc / sum : 0.0f);
    if (lse != nullptr && i % kDim == 0) {
      lse[(first_head + h) * shape.tokens + token] =
          count > 0 ? (top + log2f(sum)) / kLog2E : -INFINITY;
    }
  }
}

struct Call {
  const uint16_t *q, *k, *v;
  const KeyIndex& index;
  const AttentionShape& shape;
  uint16_t* out;
  float* lse;
  cudaStream_t stream;
};

template <int kDim, int kHeads>
void launch(const Call& c) {
  const dim3 grid(static_cast<unsigned>(c.shape.tokens),
                  static_cast<unsigned>(c.shape.heads / kHeads));
  attention_kernel<kDim, kHeads>
      <<<grid, kWarps * kWarp, 0, c.stream>>>(c.q, c.k, c.v, c.index, c.shape, c.out, c.lse);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

// The most query heads of a key head that one block takes and that divide them.
template <int kDim>
void launch_for_heads(const Call& c) {
  const int64_t group = c.shape.heads / c.shape.kv_heads;
  if (group % 8 == 0) return launch<kDim, 8>(c);
  if (group % 4 == 0) return launch<kDim, 4>(c);
  if (group % 3 == 0) return launch<kDim, 3>(c);
  if (group % 2 == 0) return launch<kDim, 2>(c);
  launch<kDim, 1>(c);
}

}  // namespace

void attention(const uint16_t* q, const uint16_t* k, const uint16_t* v, const KeyIndex& index,
               const AttentionShape& shape, uint16_t* out, float* lse, cudaStream_t stream) {
  if (shape.tokens == 0) return;
  const Call call{q, k, v, index, shape, out, lse, stream};
  switch (shape.head_dim) {
    case 16:
      return launch_for_heads<16>(call);
    case 32:
      return launch_for_heads<32>(call);
    case 64:
      return launch_for_heads<64>(call);
    case 80:
      return launch_for_heads<80>(call);
    case 96:
      return launch_for_heads<96>(call);
    case 128:
      return launch_for_heads<128>(call);
    default:
      throw Error(ErrorCode::kUnimplemented, "attention heads of " +
                                                 std::to_string(shape.head_dim) +
                                                 " values are not supported on CUDA");
  }
}

}  // namespace nibble::kernels::cuda
