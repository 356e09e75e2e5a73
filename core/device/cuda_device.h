#pragma once

#include <cstdint>
#include <string>

namespace nibble::ops {

/// A GPU as torch and the kernels see it.
struct CudaDeviceInfo {
  std::string name;
  int index = 0;
  int major = 0, minor = 0;  ///< compute capability
  int64_t total_bytes = 0;
};

/// Makes device `index` this process's GPU. Array<T> can then live there; a thread that enqueues
/// work through torch or kernels must call bind_cuda_thread() first. Throws
/// Error{kFailedPrecondition} if there is no such GPU or it is older than compute capability 8.0,
/// naming it.
CudaDeviceInfo use_cuda_device(int index);

/// The calling thread uses the process's GPU from now on.
void bind_cuda_thread();

/// GPUs of this machine; 0 where there is no driver.
int num_cuda_devices();
bool is_cuda_build();
/// Why num_cuda_devices() is 0, in a few words.
std::string no_cuda_reason();
/// Throws as use_cuda_device() would for any of this machine's GPUs; makes none of them this
/// process's.
void check_cuda_devices();

/// Bytes that can still be had on the process's GPU, cached ones included.
int64_t free_cuda_bytes();

/// The most bytes of arrays and tensors that this process has had on its GPU since the start or
/// restart_cuda_peak(); 0 without a GPU.
int64_t peak_cuda_bytes();
void restart_cuda_peak();

}  // namespace nibble::ops
