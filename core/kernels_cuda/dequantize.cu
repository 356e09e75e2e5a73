#include "core/kernels_cuda/dequantize.h"

#include "core/kernels_cuda/launch.h"
#include "core/quant/group_codec.h"
#include "core/quant/pack.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kMaxMatrices = 96;  // of a launch: what fits a kernel's arguments

struct Matrices {
  const uint32_t* words[kMaxMatrices];
  const uint16_t* scale[kMaxMatrices];
};

__device__ uint4 dequantize_word(uint32_t word, uint16_t scale) {
  const float s = quant::bf16_to_float(scale);
  uint4 out;
  uint32_t* pair = reinterpret_cast<uint32_t*>(&out);
  for (int k = 0; k < 4; ++k) {
    const uint32_t low = quant::dequantize_code(quant::int4_at(word, 2 * k), s);
    const uint32_t high = quant::dequantize_code(quant::int4_at(word, 2 * k + 1), s);
    pair[k] = low | high << 16;
  }
  return out;
}

// blockIdx.y is the matrix. Reads a word, writes 16 bytes; bound by HBM bandwidth.
__global__ void dequantize_kernel(const __grid_constant__ Matrices matrices, int64_t num_words,
                                  int words_per_group, uint16_t* __restrict__ panel) {
  const uint32_t* words = matrices.words[blockIdx.y];
  const uint16_t* scale = matrices.scale[blockIdx.y];
  panel += int64_t{blockIdx.y} * num_words * 8;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < num_words;
       i += int64_t{gridDim.x} * kThreads) {
    const uint4 out = dequantize_word(words[i], scale[i / words_per_group]);
    *reinterpret_cast<uint4*>(panel + i * 8) = out;
  }
}

__global__ void dequantize_one_kernel(WeightView view, const WeightView* on_device,
                                      uint16_t* __restrict__ panel) {
  const WeightView w = on_device != nullptr ? *on_device : view;
  const int64_t num_units = w.rows * w.cols / 8;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < num_units;
       i += int64_t{gridDim.x} * kThreads) {
    *reinterpret_cast<uint4*>(panel + i * 8) =
        w.format == WeightFormat::kBf16 ? reinterpret_cast<const uint4*>(w.bf16())[i]
                                        : dequantize_word(w.words()[i], w.scale[i * 8 / w.group]);
  }
}

}  // namespace

void dequantize(std::span<const WeightView> views, uint16_t* panel, cudaStream_t stream) {
  while (!views.empty()) {
    const WeightView& first = views[0];
    const int64_t elements = first.rows * first.cols;
    if (elements == 0) return;
    if (first.format == WeightFormat::kBf16) {
      NIBBLE_CUDA_CHECK(cudaMemcpyAsync(panel, first.data, static_cast<size_t>(elements) * 2,
                                        cudaMemcpyDeviceToDevice, stream));
      panel += elements;
      views = views.subspan(1);
      continue;
    }
    Matrices matrices{};
    const size_t count = views.size() < kMaxMatrices ? views.size() : kMaxMatrices;
    for (size_t i = 0; i < count; ++i) {
      matrices.words[i] = views[i].words();
      matrices.scale[i] = views[i].scale;
    }
    const dim3 grid(grid_size(elements / 8, kThreads, 2048), static_cast<unsigned>(count));
    dequantize_kernel<<<grid, kThreads, 0, stream>>>(matrices, elements / 8,
                                                     static_cast<int>(first.group / 8), panel);
    NIBBLE_CUDA_CHECK(cudaGetLastError());
    panel += elements * static_cast<int64_t>(count);
    views = views.subspan(count);
  }
}

void dequantize(const DeviceWeight& w, uint16_t* panel, cudaStream_t stream) {
  const int64_t units = w.view.rows * w.view.cols / 8;
  dequantize_one_kernel<<<grid_size(units, kThreads, 2048), kThreads, 0, stream>>>(
      w.view, w.on_device, panel);
  NIBBLE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace nibble::kernels::cuda
