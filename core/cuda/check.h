#pragma once

#include <cuda_runtime_api.h>

namespace nibble::detail {
[[noreturn]] void throw_cuda_error(cudaError_t status, const char* call, const char* file,
                                   int line);
}  // namespace nibble::detail

/// Throws Error{kInternal} (kResourceExhausted when memory ran out) naming the call and the place.
#define NIBBLE_CUDA_CHECK(call)                                               \
  do {                                                                        \
    if (const cudaError_t status_ = (call); status_ != cudaSuccess)           \
      ::nibble::detail::throw_cuda_error(status_, #call, __FILE__, __LINE__); \
  } while (false)
