#include "core/device/cuda_device.h"

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/base/compute_capability.h"
#include "core/base/device_memory.h"
#include "core/base/fail.h"
#include "core/cuda/check.h"
#include "core/cuda/event.h"
#include "core/cuda/stream.h"
#include "core/kernels_cuda/copy_tiles.h"

namespace nibble::ops {
namespace {

std::atomic<int> device_index{-1};

// A stream of its own, tied to the calling thread's by events.
class CudaCopyLane final : public CopyLane {
 public:
  void copy(void* to, const void* from, int64_t bytes) override {
    bind_cuda_thread();
    enqueued_.record(c10::cuda::getCurrentCUDAStream());
    enqueued_.hold(stream_.get());
    NIBBLE_CUDA_CHECK(
        cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_.get()));
  }
  void join() override {
    bind_cuda_thread();
    copied_.record(stream_.get());
    copied_.hold(c10::cuda::getCurrentCUDAStream());
  }

 private:
  CudaStream stream_;
  CudaEvent enqueued_;
  CudaEvent copied_;
};

// What both kinds of memory share: copies go in the calling thread's stream.
class CudaReachedMemory : public DeviceMemory {
 public:
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
    if (is_host(data)) finish();
  }
  void finish() override {
    NIBBLE_CUDA_CHECK(cudaStreamSynchronize(c10::cuda::getCurrentCUDAStream()));
  }
  std::unique_ptr<CopyLane> make_copy_lane() override {
    bind_cuda_thread();
    return std::make_unique<CudaCopyLane>();
  }

 private:
  static bool is_host(const void* data) {
    cudaPointerAttributes attributes{};
    NIBBLE_CUDA_CHECK(cudaPointerGetAttributes(&attributes, data));
    return attributes.type != cudaMemoryTypeDevice;
  }
};

// Memory from torch's allocator, so that tensors and arrays share one pool.
class TorchCudaMemory final : public CudaReachedMemory {
 public:
  void copy_all(std::span<const MemoryCopy> copies) override {
    using kernels::cuda::CopyTile;
    using kernels::cuda::kCopyTileBytes;
    bind_cuda_thread();
    std::vector<CopyTile> tiles;
    for (const MemoryCopy& one : copies) {
      for (int64_t offset = 0; offset < one.bytes; offset += kCopyTileBytes) {
        tiles.push_back({static_cast<std::byte*>(one.to) + offset,
                         static_cast<const std::byte*>(one.from) + offset,
                         std::min(kCopyTileBytes, one.bytes - offset)});
      }
    }
    if (tiles.empty()) return;
    // The table is the allocator's again at once: whoever gets it next comes later in the stream.
    const size_t bytes = tiles.size() * sizeof(CopyTile);
    void* const table = allocate(static_cast<int64_t>(bytes));
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    NIBBLE_CUDA_CHECK(cudaMemcpyAsync(table, tiles.data(), bytes, cudaMemcpyHostToDevice, stream));
    kernels::cuda::copy_tiles(static_cast<const CopyTile*>(table), std::ssize(tiles), stream);
    release(table);
  }
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
};

class PageLockedMemory final : public CudaReachedMemory {
 public:
  void* allocate(int64_t bytes) override {
    bind_cuda_thread();
    void* data = nullptr;
    // Portable: every thread's device reaches it, at the address the host uses.
    const cudaError_t status =
        cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocPortable);
    if (status == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      fail(ErrorCode::kResourceExhausted,
           "{} MiB of page-locked host memory are not to be had; see `ulimit -l` and free memory",
           bytes >> 20);
    }
    NIBBLE_CUDA_CHECK(status);
    return data;
  }
  void release(void* data) noexcept override { (void)cudaFreeHost(data); }
};

// Throws for a GPU that is too old.
CudaDeviceInfo read_info(int index) {
  cudaDeviceProp properties{};
  NIBBLE_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  CudaDeviceInfo info{properties.name, index, properties.major, properties.minor,
                      static_cast<int64_t>(properties.totalGlobalMem)};
  check_compute_capability(index, info.name, info.major, info.minor);
  return info;
}

}  // namespace

int num_cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

bool is_cuda_build() { return true; }

std::string no_cuda_reason() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  return status == cudaSuccess ? "the driver shows no GPU" : cudaGetErrorString(status);
}

void check_cuda_devices() {
  for (int index = 0; index < num_cuda_devices(); ++index) (void)read_info(index);
}

CudaDeviceInfo use_cuda_device(int index) {
  const int count = num_cuda_devices();
  if (index < 0 || index >= count) {
    fail(ErrorCode::kFailedPrecondition, "there is no GPU {}: this machine shows {}", index, count);
  }
  const CudaDeviceInfo info = read_info(index);
  // Sums of BF16 products stay in float32 to the end.
  at::globalContext().setAllowBF16ReductionCuBLAS(false);
  at::globalContext().lazyInitDevice(c10::DeviceType::CUDA);
  device_index = index;
  bind_cuda_thread();
  static TorchCudaMemory memory;
  static PageLockedMemory host_memory;
  register_cuda_memory(memory, host_memory);
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

int64_t peak_cuda_bytes() {
  if (device_index < 0) return 0;
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(
      static_cast<c10::DeviceIndex>(device_index.load()));
  const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return stats.allocated_bytes[all].peak;
}

void restart_cuda_peak() {
  if (device_index < 0) return;
  c10::cuda::CUDACachingAllocator::resetPeakStats(
      static_cast<c10::DeviceIndex>(device_index.load()));
}

}  // namespace nibble::ops
