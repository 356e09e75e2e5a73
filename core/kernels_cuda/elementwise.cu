#include "core/kernels_cuda/elementwise.h"

#include "core/kernels_cuda/launch.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Runs `body(i)` for every eighth element index below count.
template <typename Body>
__global__ void for_eights_kernel(int64_t count, Body body) {
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8; i < count;
       i += int64_t{gridDim.x} * kThreads * 8) {
    body(i);
  }
}

template <typename Body>
void for_eights(int64_t count, cudaStream_t stream, Body body) {
  if (count == 0) return;
  for_eights_kernel<<<grid_size(count, kThreads * 8), kThreads, 0, stream>>>(count, body);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

struct EmbedBody {
  const int32_t* ids;
  const uint16_t* direct;
  const WeightView* on_device;
  int64_t cols;
  uint16_t* out;
  __device__ void operator()(int64_t i) const {
    const uint16_t* table = on_device != nullptr ? on_device->bf16() : direct;
    store8(out + i, load8(table + int64_t{ids[i / cols]} * cols + i % cols));
  }
};

__global__ void scatter_values_kernel(const int64_t* __restrict__ index,
                                      const int32_t* __restrict__ value, int64_t count,
                                      int32_t* __restrict__ table) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) table[index[i]] = value[i];
}

struct AddBody {
  uint16_t* sum;
  const uint16_t* x;
  __device__ void operator()(int64_t i) const {
    Bf16x8 a = load8(sum + i);
    const Bf16x8 b = load8(x + i);
    for (int k = 0; k < 8; ++k) a.value[k] = to_bf16(to_float(a.value[k]) + to_float(b.value[k]));
    store8(sum + i, a);
  }
};

struct ScaleBody {
  uint16_t* x;
  float factor;
  __device__ void operator()(int64_t i) const {
    Bf16x8 a = load8(x + i);
    for (int k = 0; k < 8; ++k) a.value[k] = to_bf16(to_float(a.value[k]) * factor);
    store8(x + i, a);
  }
};

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct SiluMulBody {
  const uint16_t *gate, *up;
  uint16_t* out;
  __device__ void operator()(int64_t i) const {
    Bf16x8 g = load8(gate + i);
    const Bf16x8 u = load8(up + i);
    for (int k = 0; k < 8; ++k) {
      const float x = to_float(g.value[k]);
      g.value[k] = to_bf16(x * sigmoid(x) * to_float(u.value[k]));
    }
    store8(out + i, g);
  }
};

struct SiluMulBackwardBody {
  const uint16_t *gate, *up, *dout;
  uint16_t *dgate, *dup;
  __device__ void operator()(int64_t i) const {
    const Bf16x8 g = load8(gate + i), u = load8(up + i), d = load8(dout + i);
    Bf16x8 dg, du;
    for (int k = 0; k < 8; ++k) {
      const float x = to_float(g.value[k]);
      const float s = sigmoid(x);
      const float dy = to_float(d.value[k]);
      du.value[k] = to_bf16(dy * x * s);
      dg.value[k] = to_bf16(dy * to_float(u.value[k]) * s * (1.0f + x * (1.0f - s)));
    }
    store8(dgate + i, dg);
    store8(dup + i, du);
  }
};

struct ScatterBody {
  const uint16_t* x;
  const int32_t* slot;
  int64_t cols;
  uint16_t* cache;
  __device__ void operator()(int64_t i) const {
    const int64_t row = slot[i / cols];
    if (row >= 0) store8(cache + row * cols + i % cols, load8(x + i));
  }
};

// Consecutive pairs of a head whose values lie `half` apart.
template <int kPairs>
struct Pairs {
  alignas(kPairs * 2) uint16_t value[kPairs];
};
template <int kPairs>
struct Angles {
  alignas(kPairs >= 4 ? 16 : 4) float value[kPairs];
};

// kPairs pairs a thread, from x to y, which may be one. `turn` is 1 or -1: the sign of the sine.
template <int kPairs>
__global__ void rope_kernel(const uint16_t* x, uint16_t* y, const int32_t* __restrict__ position,
                            int64_t pairs, int64_t heads, RopeTable table, float turn) {
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kPairs;
  if (i >= pairs) return;
  const int64_t head = i / table.half;
  const int64_t k = i % table.half;
  const int64_t angle = int64_t{position[head / heads]} * table.half + k;
  const auto c = *reinterpret_cast<const Angles<kPairs>*>(table.cosine + angle);
  const auto s = *reinterpret_cast<const Angles<kPairs>*>(table.sine + angle);
  const int64_t at = head * 2 * table.half + k;
  auto low = *reinterpret_cast<const Pairs<kPairs>*>(x + at);
  auto high = *reinterpret_cast<const Pairs<kPairs>*>(x + at + table.half);
  for (int p = 0; p < kPairs; ++p) {
    const float a = to_float(low.value[p]), b = to_float(high.value[p]);
    const float sine = s.value[p] * turn;
    low.value[p] = to_bf16(fmaf(a, c.value[p], -(b * sine)));
    high.value[p] = to_bf16(fmaf(b, c.value[p], a * sine));
  }
  *reinterpret_cast<Pairs<kPairs>*>(y + at) = low;
  *reinterpret_cast<Pairs<kPairs>*>(y + at + table.half) = high;
}

}  // namespace

void embed(const int32_t* ids, const DeviceWeight& table, int64_t tokens, uint16_t* out,
           cudaStream_t stream) {
  const int64_t cols = table.view.cols;
  for_eights(tokens * cols, stream, EmbedBody{ids, table.view.bf16(), table.on_device, cols, out});
}

void gather_rows(const uint16_t* x, const int32_t* rows, int64_t count, int64_t cols, uint16_t* out,
                 cudaStream_t stream) {
  for_eights(count * cols, stream, EmbedBody{rows, x, nullptr, cols, out});
}

void scatter_values(const int64_t* index, const int32_t* value, int64_t count, int32_t* table,
                    cudaStream_t stream) {
  if (count == 0) return;
  scatter_values_kernel<<<grid_size(count, kThreads, int64_t{1} << 30), kThreads, 0, stream>>>(
      index, value, count, table);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void add(uint16_t* sum, const uint16_t* x, int64_t count, cudaStream_t stream) {
  for_eights(count, stream, AddBody{sum, x});
}

void scale(uint16_t* x, float factor, int64_t count, cudaStream_t stream) {
  for_eights(count, stream, ScaleBody{x, factor});
}

void silu_mul(const uint16_t* gate, const uint16_t* up, int64_t count, uint16_t* out,
              cudaStream_t stream) {
  for_eights(count, stream, SiluMulBody{gate, up, out});
}

void silu_mul_backward(const uint16_t* gate, const uint16_t* up, const uint16_t* dout,
                       int64_t count, uint16_t* dgate, uint16_t* dup, cudaStream_t stream) {
  for_eights(count, stream, SiluMulBackwardBody{gate, up, dout, dgate, dup});
}

void rope(const uint16_t* x, uint16_t* y, const int32_t* position, int64_t tokens, int64_t heads,
          const RopeTable& table, RopeDirection direction, cudaStream_t stream) {
  const int64_t pairs = tokens * heads * table.half;
  if (pairs == 0) return;
  const float turn = direction == RopeDirection::kForward ? 1.0f : -1.0f;
  const auto run = [&](auto kernel, int64_t pairs_per_thread) {
    const auto blocks = grid_size(pairs, kThreads * pairs_per_thread, int64_t{1} << 30);
    kernel<<<blocks, kThreads, 0, stream>>>(x, y, position, pairs, heads, table, turn);
  };
  if (table.half % 8 == 0) {
    run(rope_kernel<8>, 8);
  } else {
    run(rope_kernel<1>, 1);
  }
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

void scatter_rows(const uint16_t* x, const int32_t* slot, int64_t tokens, int64_t cols,
                  uint16_t* cache, cudaStream_t stream) {
  for_eights(tokens * cols, stream, ScatterBody{x, slot, cols, cache});
}

}  // namespace nibble::kernels::cuda
