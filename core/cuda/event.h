#pragma once

#include <cuda_runtime_api.h>

#include <utility>

#include "core/cuda/check.h"

namespace nibble {

/// Owns one timing-free CUDA event. Move-only.
class CudaEvent {
 public:
  CudaEvent() { NIBBLE_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&&) = delete;
  ~CudaEvent() {
    if (event_ != nullptr) (void)cudaEventDestroy(event_);
  }
  /// Marks what `stream` has been given so far.
  void record(cudaStream_t stream) const { NIBBLE_CUDA_CHECK(cudaEventRecord(event_, stream)); }
  /// `stream` goes on when the event is reached.
  void hold(cudaStream_t stream) const { NIBBLE_CUDA_CHECK(cudaStreamWaitEvent(stream, event_)); }
  bool is_reached() const {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) {
      (void)cudaGetLastError();
      return false;
    }
    NIBBLE_CUDA_CHECK(status);
    return true;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace nibble
