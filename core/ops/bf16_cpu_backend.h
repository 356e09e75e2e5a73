#pragma once

#include "core/ops/cpu_backend.h"

namespace nibble::ops {

/// CpuBackend whose large products take BF16 operands through torch's library (oneDNN), in
/// AVX512-BF16 or AMX: several times as fast, and not the engine's bits. For passes that gather
/// statistics rather than log-probabilities. Activations stay float32 between products.
class Bf16CpuBackend final : public CpuBackend {
 public:
  std::string_view name() const override { return "cpu with BF16 products"; }
  /// x rounded to BF16, the product rounded to BF16.
  at::Tensor linear(const at::Tensor& x, const kernels::WeightView& w) const override;
  /// As CpuBackend: from here only logits are asked for, of routers and heads.
  at::Tensor linear_float(const at::Tensor& x, const kernels::WeightView& w) const override;
  void add_gram(const at::Tensor& x, at::Tensor& gram) const override;
};

/// The backend for such passes: a Bf16CpuBackend where this processor multiplies BF16 (and
/// NIBBLE_CPU_ISA allows AVX-512), else cpu_backend().
const CpuBackend& statistics_cpu_backend();

}  // namespace nibble::ops
