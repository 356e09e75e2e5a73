#include "core/ops/bf16_cpu_backend.h"

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>

#include <algorithm>

#include "core/kernels/isa.h"
#include "core/kernels/transpose.h"
#include "core/ops/torch_parallel.h"
#include "core/tensor/check.h"

namespace nibble::ops {
namespace {

bool multiplies_bf16() {
  return kernels::selected_isa() == kernels::Isa::kAvx512 && __builtin_cpu_supports("avx512bf16") &&
         at::hasMKLDNN();
}

}  // namespace

at::Tensor Bf16CpuBackend::linear(const at::Tensor& x, const kernels::WeightView& w) const {
  if (w.format != kernels::WeightFormat::kBf16) return CpuBackend::linear(x, w);
  check_matrix(x, w.cols, "linear input");
  const at::Tensor weight =
      at::from_blob(const_cast<uint16_t*>(w.bf16()), {w.rows, w.cols}, at::dtype(at::kBFloat16));
  return at::linear(x.to(at::kBFloat16), weight).to(at::kFloat);
}

at::Tensor Bf16CpuBackend::linear_float(const at::Tensor& x, const kernels::WeightView& w) const {
  return CpuBackend::linear(x, w);
}

void Bf16CpuBackend::add_gram(const at::Tensor& x, at::Tensor& gram) const {
  constexpr int64_t kRows = 512;
  const int64_t tokens = x.size(0);
  const int64_t cols = gram.size(1);
  const at::Tensor right = x.to(at::kBFloat16);
  const at::Tensor left = at::empty({cols, tokens}, right.options());
  kernels::transpose_bf16(static_cast<const uint16_t*>(right.const_data_ptr()), tokens, cols,
                          static_cast<uint16_t*>(left.mutable_data_ptr()), torch_parallel());
  const auto* a = left.const_data_ptr<at::BFloat16>();
  const auto* b = right.const_data_ptr<at::BFloat16>();
  // Symmetric: rows from their diagonal on, half the work.
  for (int64_t i = 0; i < cols; i += kRows) {
    at::native::cpublas::brgemm(std::min(kRows, cols - i), cols - i, tokens, tokens, cols, cols,
                                /*add_C=*/true, a + i * tokens, b + i,
                                gram.data_ptr<float>() + i * cols + i, /*is_vnni=*/false);
  }
}

const CpuBackend& statistics_cpu_backend() {
  static const Bf16CpuBackend bf16;
  static const bool uses_bf16 = multiplies_bf16();
  return uses_bf16 ? bf16 : cpu_backend();
}

}  // namespace nibble::ops
