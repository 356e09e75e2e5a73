#pragma once

// What the calls of CudaWeightKernels share. Included by .cu files only.

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "core/cuda/check.h"
#include "core/cuda/device_buffer.h"
#include "core/cuda/stream.h"
#include "core/kernels_cuda/weight_kernels.h"

namespace nibble::kernels::cuda {

/// Device memory for job lists and results, and the stream that works on them.
class CudaWeightKernels::Scratch {
 public:
  explicit Scratch(std::unique_ptr<CudaStream> own) : Scratch(own->get()) { own_ = std::move(own); }
  explicit Scratch(cudaStream_t s) : stream(s) { NIBBLE_CUDA_CHECK(cudaGetDevice(&device_)); }
  // The calling thread works on our device from now on.
  void bind() const { NIBBLE_CUDA_CHECK(cudaSetDevice(device_)); }

  // The list on the device, until the next call of the same slot.
  template <typename T>
  const T* upload(int slot, const std::vector<T>& list) {
    return static_cast<const T*>(upload_bytes(slot, list.data(), list.size() * sizeof(T)));
  }
  void* reserve(int slot, size_t bytes) {
    auto& buffer = buffers_[slot];
    const auto wanted = static_cast<int64_t>(bytes);
    if (!buffer || buffer->count() < wanted) {
      // The old one stays: to free it would wait for all that the device has been given, and a
      // transfer from a peer that is gone never ends.
      const int64_t before = buffer ? buffer->count() : kFirstBytes / 2;
      if (buffer) outgrown_.push_back(std::move(buffer));
      buffer = std::make_unique<DeviceBuffer<std::byte>>(std::max(wanted, 2 * before));
    }
    return buffer->data();
  }
  void download(void* to, const void* from, size_t bytes) {
    NIBBLE_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream));
    NIBBLE_CUDA_CHECK(cudaStreamSynchronize(stream));
  }
  // `count` counters, zeroed; `run` enqueues what adds to them.
  template <typename Counter = unsigned long long, typename Run>
  std::vector<Counter> count(size_t count, Run run) {
    bind();
    const std::lock_guard lock(mutex);
    std::vector<Counter> result(count);
    const size_t bytes = count * sizeof result[0];
    auto* counters = static_cast<Counter*>(reserve(0, bytes));
    NIBBLE_CUDA_CHECK(cudaMemsetAsync(counters, 0, bytes, stream));
    run(counters);
    NIBBLE_CUDA_CHECK(cudaGetLastError());
    download(result.data(), counters, bytes);
    return result;
  }

  const cudaStream_t stream;
  std::mutex mutex;

 private:
  int device_ = 0;
  std::unique_ptr<CudaStream> own_;
  const void* upload_bytes(int slot, const void* list, size_t bytes) {
    void* at = reserve(slot, bytes);
    NIBBLE_CUDA_CHECK(cudaMemcpyAsync(at, list, bytes, cudaMemcpyHostToDevice, stream));
    return at;
  }
  static constexpr int64_t kFirstBytes = 64 << 10;
  std::unique_ptr<DeviceBuffer<std::byte>> buffers_[4];
  std::vector<std::unique_ptr<DeviceBuffer<std::byte>>> outgrown_;  // together less than buffers_
};

}  // namespace nibble::kernels::cuda
