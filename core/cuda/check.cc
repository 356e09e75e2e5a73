#include "core/cuda/check.h"

#include "core/base/fail.h"

namespace nibble::detail {

void throw_cuda_error(cudaError_t status, const char* call, const char* file, int line) {
  const ErrorCode code =
      status == cudaErrorMemoryAllocation ? ErrorCode::kResourceExhausted : ErrorCode::kInternal;
  fail(code, "CUDA: {} returned {} ({}) at {}:{}", call, cudaGetErrorName(status),
       cudaGetErrorString(status), file, line);
}

}  // namespace nibble::detail
