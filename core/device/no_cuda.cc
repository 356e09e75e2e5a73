#include "core/base/fail.h"
#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"

namespace nibble::ops {
namespace {

[[noreturn]] void refuse() {
  fail(ErrorCode::kUnimplemented,
       "this nibble was built without CUDA; build it with `cmake --preset cuda`, or set "
       "cluster.device: cpu");
}

}  // namespace

int num_cuda_devices() { return 0; }
bool is_cuda_build() { return false; }
std::string no_cuda_reason() { return "this nibble was built without CUDA"; }
void check_cuda_devices() {}
CudaDeviceInfo use_cuda_device(int /*index*/) { refuse(); }
void bind_cuda_thread() {}
int64_t free_cuda_bytes() { return 0; }
int64_t peak_cuda_bytes() { return 0; }
void restart_cuda_peak() {}
std::unique_ptr<Backend> make_cuda_backend(Numerics /*numerics*/) { refuse(); }
std::unique_ptr<kernels::WeightKernels> make_cuda_weight_kernels() { refuse(); }

}  // namespace nibble::ops
