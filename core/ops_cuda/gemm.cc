#include "core/ops_cuda/gemm.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <cublas_v2.h>

#include <vector>

#include "core/base/fail.h"
#include "core/kernels_cuda/dequantize.h"
#include "core/tensor/check.h"

namespace nibble::ops {
namespace {

at::TensorOptions bf16_on_gpu() {
  return at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA, at::cuda::current_device());
}

uint16_t* bits(at::Tensor& tensor) {
  return reinterpret_cast<uint16_t*>(tensor.data_ptr<at::BFloat16>());
}

}  // namespace

at::Tensor weight_matrix(const kernels::WeightView& w) {
  if (w.format == kernels::WeightFormat::kBf16) {
    return at::from_blob(const_cast<uint16_t*>(w.bf16()), {w.rows, w.cols}, bf16_on_gpu());
  }
  at::Tensor panel = at::empty({w.rows, w.cols}, bf16_on_gpu());
  kernels::cuda::dequantize(std::span(&w, 1), bits(panel), at::cuda::getCurrentCUDAStream());
  return panel;
}

at::Tensor weight_panel(const kernels::WeightView* first, int64_t count) {
  std::vector<kernels::WeightView> views;
  for (int64_t i = 0; i < count; ++i) views.push_back(first[3 * i]);
  at::Tensor panel = at::empty({count, first->rows, first->cols}, bf16_on_gpu());
  kernels::cuda::dequantize(views, bits(panel), at::cuda::getCurrentCUDAStream());
  return panel;
}

void add_weight_gradient(const at::Tensor& dy, const at::Tensor& x, float* grad) {
  NIBBLE_CHECK(dy.is_contiguous() && x.is_contiguous() && dy.scalar_type() == at::kBFloat16 &&
                   x.scalar_type() == at::kBFloat16 && dy.size(0) == x.size(0),
               "weight gradient of {} and {}", describe(dy), describe(x));
  const auto tokens = static_cast<int>(x.size(0));
  const auto rows = static_cast<int>(dy.size(1));
  const auto cols = static_cast<int>(x.size(1));
  if (tokens == 0) return;
  const float one = 1.0f;
  // Row-major grad [rows, cols] is column-major [cols, rows]: x^T (as it lies) times dy.
  const cublasStatus_t status = cublasGemmEx(
      at::cuda::getCurrentCUDABlasHandle(), CUBLAS_OP_N, CUBLAS_OP_T, cols, rows, tokens, &one,
      x.const_data_ptr(), CUDA_R_16BF, cols, dy.const_data_ptr(), CUDA_R_16BF, rows, &one, grad,
      CUDA_R_32F, cols, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  if (status != CUBLAS_STATUS_SUCCESS) {
    fail(ErrorCode::kInternal, "cublasGemmEx of [{}, {}] x [{}, {}] failed: {}", rows, tokens,
         tokens, cols, cublasGetStatusString(status));
  }
}

}  // namespace nibble::ops
