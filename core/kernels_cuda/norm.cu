#include "core/kernels_cuda/norm.h"

#include <type_traits>

#include "core/kernels_cuda/launch.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kWarpRow =
    512;  // rows up to this wide are a warp's at most, wider ones a block's
constexpr int64_t kGroupRow = 256;  // up to this wide several rows are a warp's
constexpr int64_t kParts =
    1056;  // partial sums of dweight: eight blocks for each of 132 processors

// Sum over kLanes neighbouring lanes of a warp in a fixed tree; each of them gets it.
template <int kLanes>
__device__ float group_sum(float x) {
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// Sums of squares of x, and of dy * weight * x.
struct RowSums {
  float squares = 0.0f;
  float dot = 0.0f;
  __device__ void add(const Bf16x8& x, const Bf16x8& w, const Bf16x8& dy) {
    for (int i = 0; i < 8; ++i) {
      const float v = to_float(x.value[i]);
      squares = fmaf(v, v, squares);
      dot = fmaf(to_float(dy.value[i]) * to_float(w.value[i]), v, dot);
    }
  }
};

// What dx of a row is made with.
struct RowScale {
  float inverse;  // 1 / rms
  float pull;
  __device__ RowScale(const RowSums& sums, int64_t cols, float eps)
      : inverse(rsqrtf(sums.squares / static_cast<float>(cols) + eps)),
        pull(sums.dot * inverse * inverse / static_cast<float>(cols)) {}
  __device__ Bf16x8 dx(const Bf16x8& x, const Bf16x8& w, Bf16x8 dy) const {
    for (int i = 0; i < 8; ++i) {
      const float direct = to_float(dy.value[i]) * to_float(w.value[i]);
      dy.value[i] = to_bf16((direct - to_float(x.value[i]) * pull) * inverse);
    }
    return dy;
  }
  // dweight[k] += dy * x / rms
  __device__ void add_to(float (&dweight)[8], const Bf16x8& x, const Bf16x8& dy) const {
    for (int i = 0; i < 8; ++i) {
      dweight[i] = fmaf(to_float(dy.value[i]) * to_float(x.value[i]), inverse, dweight[i]);
    }
  }
};

template <int kRowThreads>
__device__ float inverse_rms(const uint16_t* x, int64_t cols, float eps, float* scratch) {
  float squares = 0.0f;
  for (int64_t c = threadIdx.x * 8; c < cols; c += kRowThreads * 8) {
    const Bf16x8 v = load8(x + c);
    for (int i = 0; i < 8; ++i) squares = fmaf(to_float(v.value[i]), to_float(v.value[i]), squares);
  }
  return rsqrtf(block_sum<kRowThreads>(squares, scratch) / static_cast<float>(cols) + eps);
}

__device__ Bf16x8 normalized(Bf16x8 x, float scale, const Bf16x8& w) {
  for (int i = 0; i < 8; ++i) {
    x.value[i] = to_bf16(to_float(x.value[i]) * scale * to_float(w.value[i]));
  }
  return x;
}

// One row a block.
template <int kRowThreads>
__global__ void rms_norm_kernel(const uint16_t* x, const uint16_t* __restrict__ direct,
                                const WeightView* on_device, int64_t cols, float eps, uint16_t* y) {
  __shared__ float scratch[kRowThreads / kWarp];
  const uint16_t* weight = on_device != nullptr ? on_device->bf16() : direct;
  x += int64_t{blockIdx.x} * cols;
  y += int64_t{blockIdx.x} * cols;
  const float scale = inverse_rms<kRowThreads>(x, cols, eps, scratch);
  for (int64_t c = threadIdx.x * 8; c < cols; c += kRowThreads * 8) {
    store8(y + c, normalized(load8(x + c), scale, load8(weight + c)));
  }
}

// One row for every kLanes lanes, of which each has eight columns or none.
template <int kLanes>
__global__ void rms_norm_group_kernel(const uint16_t* x, const uint16_t* __restrict__ direct,
                                      const WeightView* on_device, NormShape shape, uint16_t* y) {
  const uint16_t* weight = on_device != nullptr ? on_device->bf16() : direct;
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const int64_t c = threadIdx.x % kLanes * 8;
  const bool is_mine = row < shape.rows && c < shape.cols;
  Bf16x8 v{};
  if (is_mine) v = load8(x + row * shape.cols + c);
  float squares = 0.0f;
  for (int i = 0; i < 8; ++i) squares = fmaf(to_float(v.value[i]), to_float(v.value[i]), squares);
  const float scale =
      rsqrtf(group_sum<kLanes>(squares) / static_cast<float>(shape.cols) + shape.eps);
  if (is_mine) store8(y + row * shape.cols + c, normalized(v, scale, load8(weight + c)));
}

// Rows [begin, end) of the block's part of all rows.
struct PartRows {
  int64_t begin;
  int64_t end;
  __device__ explicit PartRows(int64_t rows)
      : begin(rows * blockIdx.x / gridDim.x), end(rows * (blockIdx.x + 1) / gridDim.x) {}
};

// dx of a part's rows, one row for every kLanes lanes; part[blockIdx.x, c] = their summand of
// dweight[c].
template <int kLanes>
__global__ void backward_group_kernel(const uint16_t* __restrict__ x,
                                      const uint16_t* __restrict__ weight,
                                      const uint16_t* __restrict__ dy, NormShape shape,
                                      uint16_t* __restrict__ dx, float* __restrict__ part) {
  constexpr int kGroups = kThreads / kLanes;
  __shared__ float sums[kThreads][8 + 1];
  const PartRows rows(shape.rows);
  const int group = threadIdx.x / kLanes;
  const int64_t c = threadIdx.x % kLanes * 8;
  const bool has_columns = c < shape.cols;
  Bf16x8 w{};
  if (has_columns) w = load8(weight + c);
  float dweight[8] = {};
  for (int64_t first = rows.begin; first < rows.end; first += kGroups) {
    const int64_t row = first + group;
    const bool is_mine = has_columns && row < rows.end;
    Bf16x8 v{}, g{};
    if (is_mine) {
      v = load8(x + row * shape.cols + c);
      g = load8(dy + row * shape.cols + c);
    }
    RowSums mine;
    mine.add(v, w, g);
    const RowScale scale({group_sum<kLanes>(mine.squares), group_sum<kLanes>(mine.dot)}, shape.cols,
                         shape.eps);
    if (!is_mine) continue;
    store8(dx + row * shape.cols + c, scale.dx(v, w, g));
    scale.add_to(dweight, v, g);
  }
  for (int i = 0; i < 8; ++i) sums[threadIdx.x][i] = dweight[i];
  __syncthreads();
  for (int64_t column = threadIdx.x; column < shape.cols; column += kThreads) {
    float sum = 0.0f;
    for (int g = 0; g < kGroups; ++g) sum += sums[g * kLanes + column / 8][column % 8];
    part[int64_t{blockIdx.x} * shape.cols + column] = sum;
  }
}

// The same with one row a block, whose threads hold kVectors times eight of its columns each.
template <int kVectors>
__global__ void backward_block_kernel(const uint16_t* __restrict__ x,
                                      const uint16_t* __restrict__ weight,
                                      const uint16_t* __restrict__ dy, NormShape shape,
                                      uint16_t* __restrict__ dx, float* __restrict__ part) {
  __shared__ float scratch[2][2][kThreads / kWarp];  // in turn, so that a row needs one barrier
  const PartRows rows(shape.rows);
  const auto column = [](int i) { return (int64_t{i} * kThreads + threadIdx.x) * 8; };
  Bf16x8 w[kVectors] = {};
  float dweight[kVectors][8] = {};
  for (int i = 0; i < kVectors; ++i) {
    if (column(i) < shape.cols) w[i] = load8(weight + column(i));
  }
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    Bf16x8 v[kVectors] = {}, g[kVectors] = {};
    RowSums mine;
    for (int i = 0; i < kVectors; ++i) {
      if (column(i) >= shape.cols) continue;
      v[i] = load8(x + row * shape.cols + column(i));
      g[i] = load8(dy + row * shape.cols + column(i));
      mine.add(v[i], w[i], g[i]);
    }
    auto* place = scratch[row % 2];
    mine = {warp_sum(mine.squares), warp_sum(mine.dot)};
    if (threadIdx.x % kWarp == 0) {
      place[0][threadIdx.x / kWarp] = mine.squares;
      place[1][threadIdx.x / kWarp] = mine.dot;
    }
    __syncthreads();
    RowSums all;
    for (int k = 0; k < kThreads / kWarp; ++k) {
      all.squares += place[0][k];
      all.dot += place[1][k];
    }
    const RowScale scale(all, shape.cols, shape.eps);
    for (int i = 0; i < kVectors; ++i) {
      if (column(i) >= shape.cols) continue;
      store8(dx + row * shape.cols + column(i), scale.dx(v[i], w[i], g[i]));
      scale.add_to(dweight[i], v[i], g[i]);
    }
  }
  for (int i = 0; i < kVectors; ++i) {
    if (column(i) >= shape.cols) continue;
    for (int k = 0; k < 8; ++k) {
      part[int64_t{blockIdx.x} * shape.cols + column(i) + k] = dweight[i][k];
    }
  }
}

// Adds the parts to dweight: a warp has every kThreads / kWarp-th part of 32 columns, in order.
__global__ void add_parts_kernel(const float* __restrict__ part, int64_t parts, int64_t cols,
                                 float* __restrict__ dweight) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ float sums[kWarps][kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t c = int64_t{blockIdx.x} * kWarp + lane;
  float sum = 0.0f;
  if (c < cols) {
#pragma unroll 8
    for (int64_t p = warp; p < parts; p += kWarps) sum += part[p * cols + c];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || c >= cols) return;
  float total = dweight[c];
  for (int k = 0; k < kWarps; ++k) total += sums[k][lane];
  dweight[c] = total;
}

int64_t num_parts(const NormShape& shape) { return shape.rows < kParts ? shape.rows : kParts; }

// Calls `launch` with the smallest number of lanes that hold a row of at most kGroupRow columns.
template <typename Launch>
void with_lanes(int64_t cols, Launch launch) {
  if (cols <= 16) return launch(std::integral_constant<int, 2>());
  if (cols <= 32) return launch(std::integral_constant<int, 4>());
  if (cols <= 64) return launch(std::integral_constant<int, 8>());
  if (cols <= 128) return launch(std::integral_constant<int, 16>());
  launch(std::integral_constant<int, 32>());
}

}  // namespace

int64_t norm_scratch_floats(const NormShape& shape) { return num_parts(shape) * shape.cols; }

void rms_norm(const uint16_t* x, const DeviceWeight& weight, const NormShape& shape, uint16_t* y,
              cudaStream_t stream) {
  if (shape.rows == 0) return;
  const auto rows = static_cast<unsigned>(shape.rows);
  if (shape.cols <= kGroupRow) {
    with_lanes(shape.cols, [&](auto lanes) {
      const int64_t rows_per_block = kThreads / lanes;
      const auto blocks = static_cast<unsigned>((shape.rows + rows_per_block - 1) / rows_per_block);
      rms_norm_group_kernel<lanes>
          <<<blocks, kThreads, 0, stream>>>(x, weight.view.bf16(), weight.on_device, shape, y);
    });
  } else if (shape.cols <= kWarpRow) {
    rms_norm_kernel<kWarp><<<rows, kWarp, 0, stream>>>(x, weight.view.bf16(), weight.on_device,
                                                       shape.cols, shape.eps, y);
  } else {
    rms_norm_kernel<kThreads><<<rows, kThreads, 0, stream>>>(
        x, weight.view.bf16(), weight.on_device, shape.cols, shape.eps, y);
  }
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void rms_norm_backward(const uint16_t* x, const uint16_t* weight, const uint16_t* dy,
                       const NormShape& shape, uint16_t* dx, float* dweight, float* scratch,
                       cudaStream_t stream) {
  if (shape.rows == 0) return;
  const auto parts = static_cast<unsigned>(num_parts(shape));
  const auto by_block = [&](auto kernel) {
    kernel<<<parts, kThreads, 0, stream>>>(x, weight, dy, shape, dx, scratch);
  };
  if (shape.cols <= kGroupRow) {
    with_lanes(shape.cols, [&](auto lanes) { by_block(backward_group_kernel<lanes>); });
  } else if (shape.cols <= kThreads * 8) {
    by_block(backward_block_kernel<1>);
  } else if (shape.cols <= 2 * kThreads * 8) {
    by_block(backward_block_kernel<2>);
  } else if (shape.cols <= 4 * kThreads * 8) {
    by_block(backward_block_kernel<4>);
  } else {
    by_block(backward_block_kernel<8>);
  }
  add_parts_kernel<<<grid_size(shape.cols, kWarp), kThreads, 0, stream>>>(scratch, parts,
                                                                          shape.cols, dweight);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace nibble::kernels::cuda
