#include "core/kernels_cuda/attention.h"

#include <string>

#include "core/base/error.h"
#include "core/kernels_cuda/async_copy.h"
#include "core/kernels_cuda/weight_fragment.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kKeys = 32;     // a block of keys by absolute position
constexpr int kQueries = 16;  // of a tile: rows of the instruction
constexpr int kKeyTiles = kKeys / 8;
constexpr float kLog2E = 1.4426950408889634f;

// What a block computes: query heads [head, head + num_heads) of tokens [token, token + tokens),
// which all read one key head. Query r of the tile is head r % num_heads of token r / num_heads.
struct Tile {
  int64_t token, head, kv_head;
  int tokens, num_heads;
};

struct Inputs {
  const uint16_t *q, *k, *v;
  KeyIndex index;
  AttentionShape shape;
};

// A lane's part of a row: kDim / 4 values, of which two registers make an instruction's operand.
template <int kDim>
struct LaneRow {
  static constexpr int kRegisters = kDim / 8;
  uint32_t reg[kRegisters];

  __device__ void load(const uint16_t* row, int t) {
    const uint16_t* at = row + t * (kDim / 4);
    if constexpr (kRegisters % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kRegisters; i += 4) {
        *reinterpret_cast<uint4*>(reg + i) = *reinterpret_cast<const uint4*>(at + 2 * i);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kRegisters; i += 2) {
        *reinterpret_cast<uint2*>(reg + i) = *reinterpret_cast<const uint2*>(at + 2 * i);
      }
    }
  }
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) reg[i] = 0;
  }
};

// What a warp has of its share of the keys, for queries g and g + 8: online softmax in base 2. Sums
// are of this lane's keys.
template <int kDim>
struct Partial {
  float max[2];
  float sum[2];
  float acc[kDim / 8][4];

  __device__ void clear() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      max[h] = -INFINITY;
      sum[h] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[n][i] = 0.0f;
    }
  }
};

template <int kDim>
struct Scratch {
  static constexpr int kPitch = kDim + 8;  // rows begin in other banks
  union {
    alignas(16) uint16_t values[kWarps][kKeys][kPitch];
    float acc[kWarps][kQueries][kDim];
  };
  float max[kWarps][kQueries];
  float sum[kWarps][kQueries];
};

__device__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

__device__ uint32_t pack_bf16(float low, float high) {
  return uint32_t{to_bf16(low)} | uint32_t{to_bf16(high)} << 16;
}

// Four 8 x 8 matrices of shared memory, transposed: lane l names row l % 8 of matrix l / 8.
__device__ void load_transposed(const uint16_t* row, uint32_t (&reg)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(reg[0]), "=r"(reg[1]), "=r"(reg[2]), "=r"(reg[3])
               : "r"(address));
}

// One block of keys. `row` is where this lane's key of the block lies; query g sees the first
// seen[0] of the block's keys, query g + 8 seen[1].
template <int kDim>
__device__ void take_keys(const Inputs& in, const Tile& tile, int32_t row, const int (&seen)[2],
                          const LaneRow<kDim> (&q)[2], uint16_t (*values)[Scratch<kDim>::kPitch],
                          Partial<kDim>& mine) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  const int64_t stride = in.shape.kv_heads * kDim;
  const int64_t offset = tile.kv_head * kDim;
  constexpr int kUnits = kDim / 8;  // of a row, 16 bytes each
#pragma unroll
  for (int i = lane; i < kKeys * kUnits; i += kWarp) {
    const int key = i / kUnits, unit = i % kUnits;
    const int32_t from = __shfl_sync(kAllLanes, row, key);
    copy_async(&values[key][unit * 8], in.v + from * stride + offset + unit * 8);
  }
  commit_copies();

  float score[kKeyTiles][4] = {};
#pragma unroll
  for (int j = 0; j < kKeyTiles; ++j) {
    LaneRow<kDim> key;
    key.load(in.k + __shfl_sync(kAllLanes, row, 8 * j + g) * stride + offset, t);
#pragma unroll
    for (int i = 0; i < LaneRow<kDim>::kRegisters; i += 2) {
      const AFragment a{{q[0].reg[i], q[1].reg[i], q[0].reg[i + 1], q[1].reg[i + 1]}};
      multiply_add(score[j], a, BFragment{{key.reg[i], key.reg[i + 1]}});
    }
  }
  const float scale = in.shape.scale * kLog2E;
  float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool is_seen = 8 * j + 2 * t + i % 2 < seen[i / 2];
      score[j][i] = is_seen ? score[j][i] * scale : -INFINITY;
      top[i / 2] = fmaxf(top[i / 2], score[j][i]);
    }
  }
  float shrink[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    top[h] = fmaxf(mine.max[h], quad_max(top[h]));
    // A query that has seen no key yet, or sees none of these, keeps what it has to the bit.
    shrink[h] = top[h] == mine.max[h] ? 1.0f : exp2f(mine.max[h] - top[h]);
    mine.max[h] = top[h];
    mine.sum[h] *= shrink[h];
  }
#pragma unroll
  for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float weight = score[j][i] == -INFINITY ? 0.0f : exp2f(score[j][i] - top[i / 2]);
      score[j][i] = weight;
      mine.sum[i / 2] += weight;
    }
  }
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) mine.acc[n][i] *= shrink[i / 2];
  }
  wait_copies<0>();
  __syncwarp();
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // 16 keys an instruction
    const float(&low)[4] = score[2 * half];
    const float(&high)[4] = score[2 * half + 1];
    const AFragment weights{{pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]),
                             pack_bf16(high[0], high[1]), pack_bf16(high[2], high[3])}};
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      uint32_t reg[4];
      load_transposed(&values[16 * half + lane % 16][8 * (n + lane / 16)], reg);
      multiply_add(mine.acc[n], weights, BFragment{{reg[0], reg[1]}});
      multiply_add(mine.acc[n + 1], weights, BFragment{{reg[2], reg[3]}});
    }
  }
  __syncwarp();
}

// Merges the warps' parts, in their order, and writes what the queries of tokens with `list` get.
template <int kDim>
__device__ void finish_list(const Inputs& in, const Tile& tile, int64_t list,
                            const Partial<kDim>& mine, Scratch<kDim>& s, uint16_t* out,
                            float* lse) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4, t = lane % 4;
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = quad_sum(mine.sum[h]);
    if (t == 0) {
      s.max[warp][g + 8 * h] = mine.max[h];
      s.sum[warp][g + 8 * h] = sum;
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      s.acc[warp][g + 8 * h][8 * n + 2 * t] = mine.acc[n][2 * h];
      s.acc[warp][g + 8 * h][8 * n + 2 * t + 1] = mine.acc[n][2 * h + 1];
    }
  }
  __syncthreads();
  const AttentionShape& shape = in.shape;
  const int queries = tile.tokens * tile.num_heads;
  for (int i = static_cast<int>(threadIdx.x); i < queries * kDim; i += kThreads) {
    const int query = i / kDim, d = i % kDim;
    const int64_t token = tile.token + query / tile.num_heads;
    if (in.index.first[token] != list) continue;
    const bool sees_keys = in.index.count[token] > 0;
    float top = -INFINITY;
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, s.max[w][query]);
    float sum = 0.0f;
    float acc = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      const float part = exp2f(s.max[w][query] - top);
      sum = fmaf(s.sum[w][query], part, sum);
      acc = fmaf(s.acc[w][query][d], part, acc);
    }
    const int64_t head = tile.head + query % tile.num_heads;
    // + 0: blocks that a query does not see may turn its -0 into 0.
    out[(token * shape.heads + head) * kDim + d] = to_bf16(sees_keys ? acc / sum + 0.0f : 0.0f);
    if (lse != nullptr && d == 0) {
      lse[head * shape.tokens + token] = sees_keys ? (top + log2f(sum)) / kLog2E : -INFINITY;
    }
  }
  __syncthreads();
}

// For each list of keys that tokens of the tile see, warp w takes its key blocks w, w + 4, ...;
// then the partial results are merged. What a query gets follows from its own keys alone: finite
// values of keys that it does not see leave it as it is, and other lists do not meet it at all.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    attention_kernel(Inputs in, int tokens_each, int heads_each, uint16_t* __restrict__ out,
                     float* __restrict__ lse) {
  __shared__ Scratch<kDim> s;
  const AttentionShape& shape = in.shape;
  Tile tile{int64_t{blockIdx.x} * tokens_each, int64_t{blockIdx.y} * heads_each, 0, tokens_each,
            heads_each};
  tile.kv_head = tile.head / (shape.heads / shape.kv_heads);
  if (tile.token + tile.tokens > shape.tokens) {
    tile.tokens = static_cast<int>(shape.tokens - tile.token);
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4, t = lane % 4;
  LaneRow<kDim> q[2];
  int own_token[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int query = g + 8 * h;
    own_token[h] = query / tile.num_heads;
    if (own_token[h] < tile.tokens) {
      const int64_t row = (tile.token + own_token[h]) * shape.heads + tile.head;
      q[h].load(in.q + (row + query % tile.num_heads) * kDim, t);
    } else {
      q[h].clear();
    }
  }
  const int64_t* first = in.index.first + tile.token;
  const int32_t* count = in.index.count + tile.token;
  for (int list = 0; list < tile.tokens; ++list) {
    bool is_new = true;
    for (int before = 0; before < list; ++before) is_new &= first[before] != first[list];
    if (!is_new) continue;
    int limit = 0;
    for (int token = list; token < tile.tokens; ++token) {
      if (first[token] == first[list]) limit = max(limit, count[token]);
    }
    int own_count[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool sees = own_token[h] < tile.tokens && first[own_token[h]] == first[list];
      own_count[h] = sees ? count[own_token[h]] : 0;
    }
    Partial<kDim> mine;
    mine.clear();
    const int32_t* rows = in.index.rows + first[list];
    for (int begin = warp * kKeys; begin < limit; begin += kWarps * kKeys) {
      const int32_t row = rows[begin + lane < limit ? begin + lane : begin];
      const int seen[2] = {own_count[0] - begin, own_count[1] - begin};
      take_keys<kDim>(in, tile, row, seen, q, s.values[warp], mine);
    }
    finish_list<kDim>(in, tile, first[list], mine, s, out, lse);
  }
}

// The most query heads of a key head that fit a tile and divide them.
int heads_of_tile(const AttentionShape& shape) {
  const int64_t group = shape.heads / shape.kv_heads;
  int64_t heads = group < kQueries ? group : kQueries;
  while (group % heads != 0) --heads;
  return static_cast<int>(heads);
}

template <int kDim>
void launch(const Inputs& in, uint16_t* out, float* lse, cudaStream_t stream) {
  constexpr int64_t kFewTokens = 256;  // decoding: every token has keys of its own
  const int heads = heads_of_tile(in.shape);
  const int tokens = in.shape.tokens <= kFewTokens ? 1 : kQueries / heads;
  const dim3 grid(static_cast<unsigned>((in.shape.tokens + tokens - 1) / tokens),
                  static_cast<unsigned>(in.shape.heads / heads));
  attention_kernel<kDim><<<grid, kThreads, 0, stream>>>(in, tokens, heads, out, lse);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void attention(const uint16_t* q, const uint16_t* k, const uint16_t* v, const KeyIndex& index,
               const AttentionShape& shape, uint16_t* out, float* lse, cudaStream_t stream) {
  if (shape.tokens == 0) return;
  const Inputs in{q, k, v, index, shape};
  switch (shape.head_dim) {
    case 16:
      return launch<16>(in, out, lse, stream);
    case 32:
      return launch<32>(in, out, lse, stream);
    case 64:
      return launch<64>(in, out, lse, stream);
    case 80:
      return launch<80>(in, out, lse, stream);
    case 96:
      return launch<96>(in, out, lse, stream);
    case 128:
      return launch<128>(in, out, lse, stream);
    default:
      throw Error(ErrorCode::kUnimplemented, "attention heads of " +
                                                 std::to_string(shape.head_dim) +
                                                 " values are not supported on CUDA");
  }
}

}  // namespace nibble::kernels::cuda
