#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "core/device/cuda_backend.h"
#include "core/device/cuda_device.h"
#include "tests/core/models/oracle_model.h"

namespace nibble {

inline const char* numerics_name(Numerics numerics) {
  return numerics == Numerics::kExact ? "exact" : "fast";
}

/// The process's GPU; tests skip where there is none.
inline bool use_gpu() {
  if (ops::num_cuda_devices() == 0) return false;
  static const bool used = [] {
    ops::use_cuda_device(0);
    return true;
  }();
  return used;
}

/// An oracle model on the GPU.
struct GpuModel {
  GpuModel(const std::string& name, const std::string& variant, Numerics numerics)
      : host(name, variant),
        backend(ops::make_cuda_backend(numerics)),
        weights(host.weights->to(DeviceKind::kCuda)),
        rope(backend->place(host.rope)) {}

  TapeResult run(const PackedBatch& batch, float temperature = 1.0f,
                 std::vector<at::Tensor> replay = {}) {
    for (at::Tensor& expert : replay) expert = expert.to(backend->options().device());
    return run_log_probs(host.spec, *weights, rope, {batch, std::move(replay), backend.get()},
                         temperature, ActivationType::kFloat32);
  }
  std::vector<float> log_probs(const PackedBatch& batch, float temperature = 1.0f) {
    const at::NoGradGuard no_grad;
    const at::Tensor values = run(batch, temperature).log_prob.cpu();
    return {values.const_data_ptr<float>(), values.const_data_ptr<float>() + values.numel()};
  }

  OracleModel host;
  std::unique_ptr<ops::Backend> backend;
  std::unique_ptr<ResidentWeights> weights;
  ops::SharedRope rope;
};

}  // namespace nibble
