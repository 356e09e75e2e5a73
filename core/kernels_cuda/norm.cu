#include "core/kernels_cuda/norm.h"

#include "core/kernels_cuda/launch.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kRowsPerPart = 128;  // of a partial sum of dweight
constexpr int kColumnThreads = 256;
constexpr int64_t kNarrow = 512;  // rows up to this wide are a warp's, wider ones a block's

template <int kThreads>
__device__ float inverse_rms(const uint16_t* x, int64_t cols, float eps, float* scratch) {
  float squares = 0.0f;
  for (int64_t c = threadIdx.x * 8; c < cols; c += kThreads * 8) {
    const Bf16x8 v = load8(x + c);
    for (int i = 0; i < 8; ++i) squares = fmaf(to_float(v.value[i]), to_float(v.value[i]), squares);
  }
  return rsqrtf(block_sum<kThreads>(squares, scratch) / static_cast<float>(cols) + eps);
}

template <int kThreads>
__global__ void rms_norm_kernel(const uint16_t* x, const uint16_t* __restrict__ direct,
                                const WeightView* on_device, int64_t cols, float eps, uint16_t* y) {
  __shared__ float scratch[kThreads / kWarp];
  const uint16_t* weight = on_device != nullptr ? on_device->bf16() : direct;
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  x += row * cols;
  y += row * cols;
  const float scale = inverse_rms<kThreads>(x, cols, eps, scratch);
  for (int64_t c = threadIdx.x * 8; c < cols; c += kThreads * 8) {
    Bf16x8 v = load8(x + c);
    const Bf16x8 w = load8(weight + c);
    for (int i = 0; i < 8; ++i) {
      v.value[i] = to_bf16(to_float(v.value[i]) * scale * to_float(w.value[i]));
    }
    store8(y + c, v);
  }
}

// dx of one row a block; keeps 1 / rms for the column pass.
template <int kThreads>
__global__ void backward_rows_kernel(const uint16_t* __restrict__ x,
                                     const uint16_t* __restrict__ weight, const uint16_t* dy,
                                     int64_t cols, float eps, uint16_t* dx,
                                     float* __restrict__ inverse) {
  __shared__ float scratch[2][kThreads / kWarp];
  const int64_t row = blockIdx.x;
  x += row * cols;
  dy += row * cols;
  dx += row * cols;
  const float scale = inverse_rms<kThreads>(x, cols, eps, scratch[0]);
  if (threadIdx.x == 0) inverse[row] = scale;
  float dot = 0.0f;
  for (int64_t c = threadIdx.x * 8; c < cols; c += kThreads * 8) {
    const Bf16x8 v = load8(x + c), w = load8(weight + c), g = load8(dy + c);
    for (int i = 0; i < 8; ++i) {
      dot = fmaf(to_float(g.value[i]) * to_float(w.value[i]), to_float(v.value[i]), dot);
    }
  }
  const float pull =
      block_sum<kThreads>(dot, scratch[1]) * scale * scale / static_cast<float>(cols);
  for (int64_t c = threadIdx.x * 8; c < cols; c += kThreads * 8) {
    const Bf16x8 v = load8(x + c), w = load8(weight + c);
    Bf16x8 g = load8(dy + c);
    for (int i = 0; i < 8; ++i) {
      const float direct = to_float(g.value[i]) * to_float(w.value[i]);
      g.value[i] = to_bf16((direct - to_float(v.value[i]) * pull) * scale);
    }
    store8(dx + c, g);
  }
}

// part[p, c] = sum over the rows of part p, in row order, of dy * x / rms.
__global__ void backward_parts_kernel(const uint16_t* __restrict__ x,
                                      const uint16_t* __restrict__ dy,
                                      const float* __restrict__ inverse, int64_t rows, int64_t cols,
                                      float* __restrict__ part) {
  const int64_t c = int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  if (c >= cols) return;
  const int64_t begin = int64_t{blockIdx.y} * kRowsPerPart;
  const int64_t end = begin + kRowsPerPart < rows ? begin + kRowsPerPart : rows;
  float sum = 0.0f;
  for (int64_t r = begin; r < end; ++r) {
    sum = fmaf(to_float(dy[r * cols + c]) * to_float(x[r * cols + c]), inverse[r], sum);
  }
  part[int64_t{blockIdx.y} * cols + c] = sum;
}

__global__ void backward_columns_kernel(const float* __restrict__ part, int64_t parts, int64_t cols,
                                        float* __restrict__ dweight) {
  const int64_t c = int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  if (c >= cols) return;
  float sum = dweight[c];
  for (int64_t p = 0; p < parts; ++p) sum += part[p * cols + c];
  dweight[c] = sum;
}

int64_t num_parts(const NormShape& shape) { return (shape.rows + kRowsPerPart - 1) / kRowsPerPart; }

}  // namespace

int64_t norm_scratch_floats(const NormShape& shape) {
  return shape.rows + num_parts(shape) * shape.cols;
}

void rms_norm(const uint16_t* x, const DeviceWeight& weight, const NormShape& shape, uint16_t* y,
              cudaStream_t stream) {
  if (shape.rows == 0) return;
  const auto rows = static_cast<unsigned>(shape.rows);
  if (shape.cols <= kNarrow) {
    rms_norm_kernel<kWarp><<<rows, kWarp, 0, stream>>>(x, weight.view.bf16(), weight.on_device,
                                                       shape.cols, shape.eps, y);
  } else {
    rms_norm_kernel<256><<<rows, 256, 0, stream>>>(x, weight.view.bf16(), weight.on_device,
                                                   shape.cols, shape.eps, y);
  }
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void rms_norm_backward(const uint16_t* x, const uint16_t* weight, const uint16_t* dy,
                       const NormShape& shape, uint16_t* dx, float* dweight, float* scratch,
                       cudaStream_t stream) {
  if (shape.rows == 0) return;
  const auto rows = static_cast<unsigned>(shape.rows);
  float* inverse = scratch;
  float* part = scratch + shape.rows;
  const dim3 grid(grid_size(shape.cols, kColumnThreads), static_cast<unsigned>(num_parts(shape)));
  if (shape.cols <= kNarrow) {
    backward_rows_kernel<kWarp>
        <<<rows, kWarp, 0, stream>>>(x, weight, dy, shape.cols, shape.eps, dx, inverse);
  } else {
    backward_rows_kernel<256>
        <<<rows, 256, 0, stream>>>(x, weight, dy, shape.cols, shape.eps, dx, inverse);
  }
  backward_parts_kernel<<<grid, kColumnThreads, 0, stream>>>(x, dy, inverse, shape.rows, shape.cols,
                                                             part);
  backward_columns_kernel<<<grid.x, kColumnThreads, 0, stream>>>(part, num_parts(shape), shape.cols,
                                                                 dweight);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace nibble::kernels::cuda
