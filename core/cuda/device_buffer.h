#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/cuda/check.h"

namespace nibble {

/// Owns device memory of `count` elements, uninitialized. Move-only.
template <typename T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(int64_t count) : count_(count) {
    NIBBLE_CUDA_CHECK(
        cudaMalloc(reinterpret_cast<void**>(&data_), static_cast<size_t>(count) * sizeof(T)));
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_ != nullptr) (void)cudaFree(data_);
  }
  T* data() const { return data_; }
  int64_t count() const { return count_; }
  void upload(const T* host) {
    NIBBLE_CUDA_CHECK(cudaMemcpy(data_, host, bytes(), cudaMemcpyHostToDevice));
  }
  void download(T* host) const {
    NIBBLE_CUDA_CHECK(cudaMemcpy(host, data_, bytes(), cudaMemcpyDeviceToHost));
  }

 private:
  size_t bytes() const { return static_cast<size_t>(count_) * sizeof(T); }
  T* data_ = nullptr;
  int64_t count_ = 0;
};

}  // namespace nibble
