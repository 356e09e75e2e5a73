#include "core/kernels_cuda/panel_linear.h"

#include "core/kernels_cuda/async_copy.h"
#include "core/kernels_cuda/weight_fragment.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kStages = 3;
constexpr int kUnits = kChunk / 8;  // 16-byte units of a row's chunk
constexpr int kUnitBytes = 16;

// A block's tile: `side` rows by `side` tokens, cut among its warps.
template <int side, int warps_by_rows, int warps_by_tokens, int blocks_per_multiprocessor>
struct Tile {
  static constexpr int kSide = side;
  static constexpr int kBlocks = blocks_per_multiprocessor;
  static constexpr int kWarpsByRows = warps_by_rows;
  static constexpr int kThreads = warps_by_rows * warps_by_tokens * kWarp;
  static constexpr int kWarpRows = side / warps_by_rows;
  static constexpr int kWarpTokens = side / warps_by_tokens;
  static constexpr int kRowTiles = kWarpRows / 16;
  static constexpr int kTokenTiles = kWarpTokens / 8;
  static constexpr int kSideUnits = side * kUnits;  // of one operand's stage
  static constexpr int kStageUnits = 2 * kSideUnits;
  static constexpr int kSharedBytes = kStages * kStageUnits * kUnitBytes;
};
// The large one reads half as much for an operation; the small one fills a GPU with few tokens.
using LargeTile = Tile<128, 2, 4, 1>;
using SmallTile = Tile<64, 2, 2, 2>;

// Where unit 4 t + w of a row lies in shared memory, counted from the row's first: a quarter warp
// that reads w of four t and two rows, and one that writes eight neighbours, both touch all banks
// once.
__device__ int place_in_row(int row, int t, int w) {
  return (t / 2) * 8 + (w ^ ((t & 1) << 2) ^ ((t / 2) << 1) ^ (row & 1));
}

template <typename Out>
struct Operands {
  const uint16_t* x;
  const uint16_t* panel;
  Out* y;
  int64_t rows, cols, tokens;
  const int32_t* begin;     // null: one matrix
  const WeightView* table;  // where the panel lies when the kernel runs; null: panel
};

// The chunks of a row in the order in which they are summed: chain after chain.
struct ChunkWalk {
  int chunk = 0;
  int num_chunks;
  __device__ explicit ChunkWalk(int chunks) : num_chunks(chunks) {}
  // True if the chain ends with the chunk it leaves.
  __device__ bool next() {
    const bool ends = chunk + kChains >= num_chunks;
    chunk = ends ? chunk % kChains + 1 : chunk + kChains;
    return ends;
  }
};

// One operand's rows [first, first + kSide) on their way to shared memory, a chunk at a time. A
// thread copies the same unit of rows that lie apart. Rows and features outside become zeros.
template <typename T>
struct SideCopier {
  static constexpr int kRowsApart = T::kThreads / kUnits;
  static constexpr int kCopies = T::kSide / kRowsApart;
  static_assert(kRowsApart % 2 == 0, "a thread's rows have one place");

  const uint16_t* matrix;
  const uint16_t* from;  // this thread's unit of its first row
  int64_t apart;         // values from one of its rows to the next
  int feature, cols, copies, place;

  __device__ SideCopier(const uint16_t* at, int64_t first, int64_t rows, int64_t row_values)
      : matrix(at), apart(kRowsApart * row_values), cols(static_cast<int>(row_values)) {
    const int row = static_cast<int>(threadIdx.x) / kUnits;
    const int unit = static_cast<int>(threadIdx.x) % kUnits;
    feature = unit * 8;
    from = at + (first + row) * row_values + feature;
    place = row * kUnits + place_in_row(row, unit / 4, unit % 4);
    const int64_t left = rows - first - row;
    copies = static_cast<int>(left <= 0 ? 0 : (left + kRowsApart - 1) / kRowsApart);
  }
  __device__ void start(uint4* side, int chunk) const {
    const bool is_column = chunk * kChunk + feature < cols;
    const uint16_t* at = from + chunk * kChunk;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const bool is_there = is_column && i < copies;
      copy_async(side + place + i * kRowsApart * kUnits, is_there ? at + i * apart : matrix,
                 is_there);
    }
  }
};

template <typename T>
struct Sums {
  float value[T::kRowTiles][T::kTokenTiles][4];
  __device__ void clear() {
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r) {
#pragma unroll
      for (int n = 0; n < T::kTokenTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) value[r][n][i] = 0.0f;
      }
    }
  }
  __device__ void add(const Sums& other) {
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r) {
#pragma unroll
      for (int n = 0; n < T::kTokenTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) value[r][n][i] += other.value[r][n][i];
      }
    }
  }
};

// What a warp needs for two instructions a tile.
template <typename T>
struct Fragments {
  uint4 low[T::kRowTiles], high[T::kRowTiles], token[T::kTokenTiles];

  // `weights`, `tokens`: this lane's first row of a stage's two sides.
  __device__ void load(const uint4* weights, const uint4* tokens, int place) {
#pragma unroll
    for (int n = 0; n < T::kTokenTiles; ++n) token[n] = tokens[n * 8 * kUnits + place];
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r) {
      low[r] = weights[r * 16 * kUnits + place];
      high[r] = weights[(r * 16 + 8) * kUnits + place];
    }
  }
  __device__ void multiply(Sums<T>& acc) const {
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r) {
      const AFragment first{{low[r].x, high[r].x, low[r].y, high[r].y}};
#pragma unroll
      for (int n = 0; n < T::kTokenTiles; ++n) {
        multiply_add(acc.value[r][n], first, BFragment{{token[n].x, token[n].y}});
      }
    }
#pragma unroll
    for (int r = 0; r < T::kRowTiles; ++r) {
      const AFragment second{{low[r].z, high[r].z, low[r].w, high[r].w}};
#pragma unroll
      for (int n = 0; n < T::kTokenTiles; ++n) {
        multiply_add(acc.value[r][n], second, BFragment{{token[n].z, token[n].w}});
      }
    }
  }
};

// One chunk: the instructions of linear.cu, in their order, for a warp's rows and tokens. The next
// ones' operands are on their way while one is computed.
template <typename T>
__device__ void multiply_chunk(const uint4* weights, const uint4* tokens, int g, int t,
                               Sums<T>& acc) {
  Fragments<T> now;
  now.load(weights, tokens, place_in_row(g, t, 0));
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    Fragments<T> next;
    if (w + 1 < kWords) next.load(weights, tokens, place_in_row(g, t, w + 1));
    now.multiply(acc);
    if (w + 1 < kWords) now = next;
  }
}

__device__ void put(uint16_t* at, float value) { *at = to_bf16(value); }
__device__ void put(float* at, float value) { *at = value; }

// The tile by way of shared memory: a token's rows lie together in y.
template <typename T, typename Out>
__device__ void store_tile(const Operands<Out>& p, uint4* shared, int64_t first_row,
                           int64_t first_token, int warp_row, int warp_token, int g, int t,
                           const Sums<T>& sum) {
  constexpr int kPerUnit = kUnitBytes / static_cast<int>(sizeof(Out));
  constexpr int kPitch = T::kSide + kPerUnit;
  auto* tile = reinterpret_cast<Out*>(shared);
  __syncthreads();
#pragma unroll
  for (int r = 0; r < T::kRowTiles; ++r) {
#pragma unroll
    for (int n = 0; n < T::kTokenTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = warp_token + n * 8 + 2 * t + i % 2;
        const int row = warp_row + r * 16 + g + 8 * (i / 2);
        put(tile + token * kPitch + row, sum.value[r][n][i]);
      }
    }
  }
  __syncthreads();
  constexpr int kUnitsOfToken = T::kSide / kPerUnit;
  for (int i = static_cast<int>(threadIdx.x); i < T::kSide * kUnitsOfToken; i += T::kThreads) {
    const int token = i / kUnitsOfToken, row = i % kUnitsOfToken * kPerUnit;
    if (first_token + token >= p.tokens || first_row + row >= p.rows) continue;
    *reinterpret_cast<uint4*>(p.y + (first_token + token) * p.rows + first_row + row) =
        *reinterpret_cast<const uint4*>(tile + token * kPitch + row);
  }
  __syncthreads();
}

// Blocks along x share the rows of weights that the L2 then has; blockIdx.z is the expert.
template <typename T, typename Out>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks) panel_kernel(Operands<Out> p) {
  extern __shared__ uint4 shared[];
  if (p.table != nullptr) p.panel = p.table->bf16();
  if (p.begin != nullptr) {
    const int64_t first = p.begin[blockIdx.z];
    p.tokens = p.begin[blockIdx.z + 1] - first;
    p.x += first * p.cols;
    p.y += first * p.rows;
    p.panel += int64_t{blockIdx.z} * p.rows * p.cols;
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarp,
            lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4, t = lane % 4;
  const int warp_row = warp % T::kWarpsByRows * T::kWarpRows;
  const int warp_token = warp / T::kWarpsByRows * T::kWarpTokens;
  const int64_t first_row = int64_t{blockIdx.y} * T::kSide;
  const int num_chunks = static_cast<int>((p.cols + kChunk - 1) / kChunk);
  for (int64_t first_token = int64_t{blockIdx.x} * T::kSide; first_token < p.tokens;
       first_token += int64_t{gridDim.x} * T::kSide) {
    ChunkWalk ahead(num_chunks), now(num_chunks);
    const SideCopier<T> weights(p.panel, first_row, p.rows, p.cols);
    const SideCopier<T> tokens(p.x, first_token, p.tokens, p.cols);
    int loaded = 0;
    const auto load_next = [&](int stage) {
      if (loaded++ < num_chunks) {
        uint4* at = shared + stage * T::kStageUnits;
        weights.start(at, ahead.chunk);
        tokens.start(at + T::kSideUnits, ahead.chunk);
        ahead.next();
      }
      commit_copies();
    };
    for (int s = 0; s < kStages - 1; ++s) load_next(s);
    Sums<T> acc, sum;
    acc.clear();
    sum.clear();
    for (int i = 0; i < num_chunks; ++i) {
      wait_copies<kStages - 2>();
      __syncthreads();
      load_next((i + kStages - 1) % kStages);
      const uint4* at = shared + i % kStages * T::kStageUnits;
      multiply_chunk<T>(at + (warp_row + g) * kUnits,
                        at + T::kSideUnits + (warp_token + g) * kUnits, g, t, acc);
      if (now.next()) {
        sum.add(acc);
        acc.clear();
      }
    }
    wait_copies<0>();
    store_tile<T>(p, shared, first_row, first_token, warp_row, warp_token, g, t, sum);
  }
}

constexpr int64_t tiles_of(int64_t count, int side) { return (count + side - 1) / side; }

template <typename T, typename Out>
void launch_tile(const Operands<Out>& p, int64_t experts, int64_t tokens_each,
                 cudaStream_t stream) {
  static const bool prepared = [] {
    NIBBLE_CUDA_CHECK(cudaFuncSetAttribute(
        panel_kernel<T, Out>, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes));
    return true;
  }();
  (void)prepared;
  const dim3 grid(grid_size(tokens_each, T::kSide),
                  static_cast<unsigned>(tiles_of(p.rows, T::kSide)),
                  static_cast<unsigned>(experts));
  panel_kernel<T, Out><<<grid, T::kThreads, T::kSharedBytes, stream>>>(p);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

// Shared memory of a block on this GPU, at most.
int shared_memory_bytes() {
  static const int bytes = [] {
    int device = 0, most = 0;
    NIBBLE_CUDA_CHECK(cudaGetDevice(&device));
    NIBBLE_CUDA_CHECK(
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return most;
  }();
  return bytes;
}

template <typename Out>
void launch(const Operands<Out>& p, int64_t experts, int64_t tokens_each, cudaStream_t stream) {
  constexpr int64_t kFewestTiles = 96;  // enough large ones for a GPU's multiprocessors
  const int64_t tiles =
      experts * tiles_of(p.rows, LargeTile::kSide) * tiles_of(tokens_each, LargeTile::kSide);
  if (tokens_each >= LargeTile::kSide && tiles >= kFewestTiles &&
      shared_memory_bytes() >= LargeTile::kSharedBytes) {
    launch_tile<LargeTile>(p, experts, tokens_each, stream);
  } else {
    launch_tile<SmallTile>(p, experts, tokens_each, stream);
  }
}

}  // namespace

bool has_panel_linear() { return shared_memory_bytes() >= SmallTile::kSharedBytes; }

bool suits_panel_linear(int64_t rows, int64_t cols, int64_t tokens) {
  // Outputs in whole 16-byte units; features as linear() takes them.
  return has_panel_linear() && rows % 8 == 0 && cols % kLaneFeatures == 0 &&
         tokens >= kFewestPanelTokens;
}

void panel_linear(const uint16_t* x, const uint16_t* panel, int64_t rows, int64_t cols,
                  int64_t tokens, uint16_t* y, cudaStream_t stream) {
  if (tokens == 0) return;
  launch(Operands<uint16_t>{x, panel, y, rows, cols, tokens, nullptr, nullptr}, 1, tokens, stream);
}

void panel_linear(const uint16_t* x, const uint16_t* panel, int64_t rows, int64_t cols,
                  int64_t tokens, float* y, cudaStream_t stream) {
  if (tokens == 0) return;
  launch(Operands<float>{x, panel, y, rows, cols, tokens, nullptr, nullptr}, 1, tokens, stream);
}

void panel_linear(const uint16_t* x, const DeviceWeight& bf16, int64_t tokens, uint16_t* y,
                  cudaStream_t stream) {
  if (tokens == 0) return;
  const WeightView& w = bf16.view;
  launch(Operands<uint16_t>{x, w.bf16(), y, w.rows, w.cols, tokens, nullptr, bf16.on_device}, 1,
         tokens, stream);
}

void grouped_panel_linear(const uint16_t* x, const uint16_t* panel, int64_t experts, int64_t rows,
                          int64_t cols, const int32_t* begin, int64_t pairs, uint16_t* y,
                          cudaStream_t stream) {
  if (pairs == 0) return;
  launch(Operands<uint16_t>{x, panel, y, rows, cols, pairs, begin, nullptr}, experts,
         (pairs + experts - 1) / experts, stream);
}

}  // namespace nibble::kernels::cuda
