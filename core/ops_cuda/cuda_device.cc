#include "core/device/cuda_device.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <atomic>

#include "core/base/compute_capability.h"
#include "core/base/device_memory.h"
#include "core/base/fail.h"
#include "core/cuda/check.h"

namespace nibble::ops {
namespace {

std::atomic<int> device_index{-1};

/// Memory from torch's allocator, so that tensors and arrays share one pool.
class TorchCudaMemory final : public DeviceMemory {
 public:
  void* allocate(int64_t bytes) override {
    bind_cuda_thread();
    try {
      return c10::cuda::CUDACachingAllocator::raw_alloc(static_cast<size_t>(bytes));
    } catch (const c10::OutOfMemoryError&) {
      fail(ErrorCode::kResourceExhausted, "{} MiB of GPU memory are not to be had; {} MiB are free",
           bytes >> 20, free_cuda_bytes() >> 20);
    }
  }
  void release(void* data) noexcept override { c10::cuda::CUDACachingAllocator::raw_delete(data); }
  void copy(void* to, const void* from, int64_t bytes) override {
    bind_cuda_thread();
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    NIBBLE_CUDA_CHECK(
        cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream));
    if (is_host(to) || is_host(from)) NIBBLE_CUDA_CHECK(cudaStreamSynchronize(stream));
  }
  void zero(void* data, int64_t bytes) override {
    bind_cuda_thread();
    NIBBLE_CUDA_CHECK(
        cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), c10::cuda::getCurrentCUDAStream()));
  }

  void finish() override {
    NIBBLE_CUDA_CHECK(cudaStreamSynchronize(c10::cuda::getCurrentCUDAStream()));
  }

 private:
  static bool is_host(const void* data) {
    cudaPointerAttributes attributes{};
    NIBBLE_CUDA_CHECK(cudaPointerGetAttributes(&attributes, data));
    return attributes.type != cudaMemoryTypeDevice;
  }
};

}  // namespace

int num_cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

CudaDeviceInfo use_cuda_device(int index) {
  const int count = num_cuda_devices();
  if (index < 0 || index >= count) {
    fail(ErrorCode::kFailedPrecondition, "there is no GPU {}: this machine shows {}", index, count);
  }
  cudaDeviceProp properties{};
  NIBBLE_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  const CudaDeviceInfo info{properties.name, index, properties.major, properties.minor,
                            static_cast<int64_t>(properties.totalGlobalMem)};
  check_compute_capability(index, info.name, info.major, info.minor);
  // Sums of BF16 products stay in float32 to the end.
  at::globalContext().setAllowBF16ReductionCuBLAS(false);
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
  device_index = index;
  bind_cuda_thread();
  static TorchCudaMemory memory;
  register_cuda_memory(memory);
  return info;
}

void bind_cuda_thread() {
  if (device_index >= 0) NIBBLE_CUDA_CHECK(cudaSetDevice(device_index));
}

int64_t free_cuda_bytes() {
  size_t free = 0, total = 0;
  NIBBLE_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

}  // namespace nibble::ops
