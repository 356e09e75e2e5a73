#pragma once

#include <memory>

#include "core/kernels_cuda/weight_kernels.h"
#include "tests/core/kernels_cuda/gpu_test.h"

namespace nibble::kernels {

/// Both implementations of WeightKernels.
class WeightKernelsCuda : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) gpu = std::make_unique<cuda::CudaWeightKernels>(nullptr);
  }
  const CpuWeightKernels cpu{serial};
  std::unique_ptr<cuda::CudaWeightKernels> gpu;
};

}  // namespace nibble::kernels
