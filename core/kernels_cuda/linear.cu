#include "core/kernels_cuda/linear.h"

#include <string>

#include "core/base/error.h"
#include "core/kernels_cuda/weight_fragment.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kRowTile = 16;
constexpr int kTokenTile = 8;

__device__ void store_value(uint16_t* at, float value) { *at = to_bf16(value); }
__device__ void store_value(float* at, float value) { *at = value; }

// What a launch multiplies: one matrix, or (begin) rows of x by expert.
template <typename Out>
struct Product {
  const uint16_t* x;
  Out* y;
  WeightView view;
  const WeightView* table;  // null: view
  int64_t tokens;
  const int32_t* begin;  // null: one matrix
  int64_t stride;
};

// A block's matrix and rows.
template <typename Out>
struct Task {
  const uint16_t* x;
  Out* y;
  WeightView w;
  int64_t tokens;
};

template <typename Out>
__device__ Task<Out> task_of(const Product<Out>& p, int64_t expert) {
  Task<Out> task{p.x, p.y, p.table != nullptr ? p.table[expert * p.stride] : p.view, p.tokens};
  if (p.begin != nullptr) {
    const int64_t first = p.begin[expert];
    task.tokens = p.begin[expert + 1] - first;
    task.x += first * task.w.cols;
    task.y += first * task.w.rows;
  }
  return task;
}

template <typename Out>
__device__ uint4 load_features(const Task<Out>& p, int64_t token, int64_t feature) {
  if (token >= p.tokens || feature >= p.w.cols) return make_uint4(0, 0, 0, 0);
  return *reinterpret_cast<const uint4*>(p.x + token * p.w.cols + feature);
}

// Few tokens: a block has 16 rows of expert blockIdx.z and kTiles x 8 tokens at a time; warp c sums
// chain c over all of cols, then the chains are added in order.
template <typename Lane, int kTiles, typename Out>
__global__ void __launch_bounds__(kChains* kWarp) decode_kernel(const Product<Out> product) {
  __shared__ float chain[kChains][kTiles][kRowTile][kTokenTile];
  const Task<Out> p = task_of(product, blockIdx.z);
  const WeightView& w = p.w;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int g = lane / 4, t = lane % 4;
  const int64_t base = tile_base(int64_t{blockIdx.x} * kRowTile, w.rows);
  const LaneRows rows = lane_rows(base, g, w.rows);
  for (int64_t first = 0; first < p.tokens; first += kTiles * kTokenTile) {
    float acc[kTiles][4] = {};
    for (int64_t begin = int64_t{warp} * kChunk; begin < w.cols; begin += kChains * kChunk) {
      const int64_t feature = begin + t * kLaneFeatures;
      const Lane a = feature < w.cols ? Lane::load(w, rows, feature) : Lane::zero();
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        AFragment pair[2];
        a.pair(word, pair);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          BFragment b[2];
          token_pair(load_features(p, first + n * kTokenTile + g, feature + 8 * word), b);
          multiply_add(acc[n], pair[0], b[0]);
          multiply_add(acc[n], pair[1], b[1]);
        }
      }
    }
    for (int n = 0; n < kTiles; ++n) {
      for (int i = 0; i < 4; ++i) chain[warp][n][g + 8 * (i / 2)][2 * t + i % 2] = acc[n][i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTiles * kRowTile * kTokenTile; i += kChains * kWarp) {
      const int r = i % kRowTile, column = i / kRowTile;
      float sum = 0.0f;
      for (int c = 0; c < kChains; ++c) {
        sum += chain[c][column / kTokenTile][r][column % kTokenTile];
      }
      if (first + column < p.tokens && base + r < w.rows) {
        store_value(p.y + (first + column) * w.rows + base + r, sum);
      }
    }
    __syncthreads();
  }
}

constexpr int kBlockRows = 64;      // four warps of 16
constexpr int kBlockTokens = 64;    // eight tiles
constexpr int kPitch = kChunk + 8;  // of a token in shared memory: rows start in other banks

// Many tokens: a block has 64 rows of expert blockIdx.z and 64 tokens at a time, and walks the
// chains one after another, so that every output is summed as in decode_kernel.
template <typename Lane, typename Out>
__global__ void __launch_bounds__(4 * kWarp) prefill_kernel(const Product<Out> product) {
  __shared__ uint16_t tile[kBlockTokens][kPitch];
  const Task<Out> p = task_of(product, blockIdx.z);
  const WeightView& w = p.w;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int g = lane / 4, t = lane % 4;
  constexpr int kTiles = kBlockTokens / kTokenTile;
  const int64_t row = int64_t{blockIdx.y} * kBlockRows + warp * kRowTile;
  const int64_t base = tile_base(row, w.rows);
  const LaneRows rows = lane_rows(base, g, w.rows);
  for (int64_t first_token = int64_t{blockIdx.x} * kBlockTokens; first_token < p.tokens;
       first_token += int64_t{gridDim.x} * kBlockTokens) {
    float sum[kTiles][4] = {};
    for (int chain = 0; chain < kChains && chain * kChunk < w.cols; ++chain) {
      float acc[kTiles][4] = {};
      for (int64_t begin = int64_t{chain} * kChunk; begin < w.cols; begin += kChains * kChunk) {
        __syncthreads();
        for (int i = threadIdx.x; i < kBlockTokens * kChunk / 8; i += 4 * kWarp) {
          const int token = i / (kChunk / 8), eighth = i % (kChunk / 8);
          *reinterpret_cast<uint4*>(&tile[token][eighth * 8]) =
              load_features(p, first_token + token, begin + eighth * 8);
        }
        const int64_t feature = begin + t * kLaneFeatures;
        const Lane a = feature < w.cols ? Lane::load(w, rows, feature) : Lane::zero();
        __syncthreads();
#pragma unroll
        for (int word = 0; word < kWords; ++word) {
          AFragment pair[2];
          a.pair(word, pair);
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            BFragment b[2];
            token_pair(*reinterpret_cast<const uint4*>(
                           &tile[n * kTokenTile + g][t * kLaneFeatures + 8 * word]),
                       b);
            multiply_add(acc[n], pair[0], b[0]);
            multiply_add(acc[n], pair[1], b[1]);
          }
        }
      }
      for (int n = 0; n < kTiles; ++n) {
        for (int i = 0; i < 4; ++i) sum[n][i] += acc[n][i];
      }
    }
    for (int n = 0; n < kTiles; ++n) {
      for (int i = 0; i < 4; ++i) {
        const int64_t token = first_token + n * kTokenTile + 2 * t + i % 2;
        const int64_t out = base + g + 8 * (i / 2);
        if (token < p.tokens && row < w.rows && out < w.rows) {
          store_value(p.y + token * w.rows + out, sum[n][i]);
        }
      }
    }
  }
}

constexpr int64_t kDecodeTokens = 16;  // up to so many (of an expert, on average) decode_kernel

// `tokens`: of a matrix, on average.
template <typename Lane, typename Out>
void launch(const Product<Out>& p, int64_t tokens, unsigned experts, cudaStream_t stream) {
  const auto rows = [&](int tile) {
    return static_cast<unsigned>((p.view.rows + tile - 1) / tile);
  };
  const dim3 row_tiles(rows(kRowTile), 1, experts);
  if (tokens <= kTokenTile) {
    decode_kernel<Lane, 1><<<row_tiles, kChains * kWarp, 0, stream>>>(p);
  } else if (tokens <= kDecodeTokens) {
    decode_kernel<Lane, 2><<<row_tiles, kChains * kWarp, 0, stream>>>(p);
  } else {
    const dim3 grid(grid_size(tokens, kBlockTokens, int64_t{1} << 30), rows(kBlockRows), experts);
    prefill_kernel<Lane><<<grid, 4 * kWarp, 0, stream>>>(p);
  }
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

template <typename Out>
void run(const Product<Out>& p, int64_t tokens, int64_t experts, cudaStream_t stream) {
  if (p.tokens == 0) return;
  if (p.view.cols % kLaneFeatures != 0) {
    throw Error(ErrorCode::kUnimplemented,
                "a matrix with " + std::to_string(p.view.cols) +
                    " input features does not fit the CUDA kernels: they take multiples of 32");
  }
  if (p.view.format == WeightFormat::kInt4) {
    launch<Int4Lane>(p, tokens, static_cast<unsigned>(experts), stream);
  } else {
    launch<Bf16Lane>(p, tokens, static_cast<unsigned>(experts), stream);
  }
}

}  // namespace

void linear(const uint16_t* x, const DeviceWeight& w, int64_t tokens, uint16_t* y,
            cudaStream_t stream) {
  run(Product<uint16_t>{x, y, w.view, w.on_device, tokens, nullptr, 1}, tokens, 1, stream);
}

void linear(const uint16_t* x, const DeviceWeight& w, int64_t tokens, float* y,
            cudaStream_t stream) {
  run(Product<float>{x, y, w.view, w.on_device, tokens, nullptr, 1}, tokens, 1, stream);
}

void grouped_linear(const uint16_t* x, const DeviceExperts& w, const int32_t* begin, int64_t pairs,
                    uint16_t* y, cudaStream_t stream) {
  run(Product<uint16_t>{x, y, w.view, w.table, pairs, begin, w.stride},
      (pairs + w.num_experts - 1) / w.num_experts, w.num_experts, stream);
}

}  // namespace nibble::kernels::cuda
