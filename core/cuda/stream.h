#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "core/cuda/check.h"

namespace nibble {

/// Owns a stream that does not wait for the default stream. Move-only.
class CudaStream {
 public:
  CudaStream() { NIBBLE_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  CudaStream(CudaStream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStream& operator=(CudaStream&&) = delete;
  ~CudaStream() {
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  }
  cudaStream_t get() const { return stream_; }
  void synchronize() const { NIBBLE_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Whether what `stream` is given goes into a graph.
inline bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  NIBBLE_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

/// Owns pinned host memory of `count` elements, uninitialized. Move-only.
template <typename T>
class PinnedBuffer {
 public:
  explicit PinnedBuffer(int64_t count) : count_(count) {
    NIBBLE_CUDA_CHECK(
        cudaMallocHost(reinterpret_cast<void**>(&data_), static_cast<size_t>(count) * sizeof(T)));
  }
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&&) = delete;
  ~PinnedBuffer() {
    if (data_ != nullptr) (void)cudaFreeHost(data_);
  }
  T* data() const { return data_; }
  int64_t count() const { return count_; }

 private:
  T* data_ = nullptr;
  int64_t count_ = 0;
};

/// Owns an instantiated graph. Move-only.
class CudaGraph {
 public:
  /// Captures what `body` enqueues on `stream`.
  template <typename Body>
  CudaGraph(cudaStream_t stream, Body body) {
    NIBBLE_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
      body();
    } catch (...) {
      (void)cudaStreamEndCapture(stream, &graph);
      if (graph != nullptr) (void)cudaGraphDestroy(graph);
      throw;
    }
    NIBBLE_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
    (void)cudaGraphDestroy(graph);
    NIBBLE_CUDA_CHECK(status);
  }
  CudaGraph(CudaGraph&& other) noexcept : executable_(std::exchange(other.executable_, nullptr)) {}
  CudaGraph& operator=(CudaGraph&&) = delete;
  ~CudaGraph() {
    if (executable_ != nullptr) (void)cudaGraphExecDestroy(executable_);
  }
  void launch(cudaStream_t stream) const {
    NIBBLE_CUDA_CHECK(cudaGraphLaunch(executable_, stream));
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace nibble
