#pragma once

// 16-byte copies from global to shared memory that run beside computation (sm_80 and later).
// Included by .cu files only.

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::kernels::cuda {

/// Zeros instead of `from` where it is not there.
__device__ inline void copy_async(void* to, const void* from, bool is_there = true) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = is_there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from),
               "r"(bytes));
}
/// Copies since the last commit form a group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n"); }
/// Returns when all but this thread's newest kPending groups have arrived.
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

}  // namespace nibble::kernels::cuda
