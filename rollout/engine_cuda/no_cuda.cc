#include "core/base/fail.h"
#include "rollout/engine_cuda/cuda_step_runner.h"

namespace nibble {

RunnerMemory cuda_engine_memory(const ModelSpec& /*spec*/, const EngineConfig& /*config*/) {
  return {};
}

StepRunnerFactory cuda_step_runner(
    const ops::Backend& /*backend*/,
    CudaEngineOptions /*options*/) {  // NOLINT(performance-unnecessary-value-param): as on a GPU
  fail(ErrorCode::kUnimplemented, "this nibble was built without CUDA");
}

}  // namespace nibble
