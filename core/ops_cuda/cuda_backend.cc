#include "core/device/cuda_backend.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/max.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include "core/base/fail.h"
#include "core/kernels_cuda/elementwise.h"
#include "core/kernels_cuda/linear.h"
#include "core/kernels_cuda/norm.h"
#include "core/kernels_cuda/panel_linear.h"
#include "core/ops_cuda/cuda_backend_impl.h"
#include "core/ops_cuda/gemm.h"
#include "core/tensor/check.h"

namespace nibble::ops {
namespace {

kernels::NormShape norm_shape(const at::Tensor& x, const kernels::WeightView& w, float eps) {
  NIBBLE_CHECK(
      w.format == kernels::WeightFormat::kBf16 && x.is_contiguous() && x.numel() % w.cols == 0,
      "rms_norm: {} elements in rows of {}", x.numel(), w.cols);
  return {x.numel() / w.cols, w.cols, eps};
}

void check_activations(const at::Tensor& x, int64_t cols, const char* what) {
  NIBBLE_CHECK(x.is_cuda() && x.dim() == 2 && x.is_contiguous() && x.size(1) == cols &&
                   x.scalar_type() == at::kBFloat16,
               "{}: want contiguous bfloat16 CUDA [tokens, {}], got {}", what, cols, describe(x));
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(Numerics numerics) {
  return std::make_unique<CudaBackend>(numerics);
}

std::unique_ptr<kernels::WeightKernels> make_cuda_weight_kernels() {
  return std::make_unique<kernels::cuda::CudaWeightKernels>();
}

CudaBackend::CudaBackend(Numerics numerics)
    : numerics_(numerics), weight_kernels_(current_stream()) {}

at::TensorOptions CudaBackend::options() const {
  return at::TensorOptions()
      .dtype(at::kBFloat16)
      .device(at::kCUDA, static_cast<c10::DeviceIndex>(at::cuda::current_device()));
}

at::Tensor CudaBackend::embed(const at::Tensor& ids, const kernels::WeightView& table) const {
  at::Tensor out = at::empty({ids.size(0), table.cols}, options());
  kernels::cuda::embed(ids.const_data_ptr<int32_t>(), {table, nullptr}, ids.size(0), bf16_bits(out),
                       current_stream());
  return out;
}

void CudaBackend::embed_backward(const at::Tensor& ids, int64_t padding, const at::Tensor& dout,
                                 float* dtable) const {
  if (dtable == nullptr || ids.numel() == 0) return;
  const int64_t most = ids.max().item<int32_t>();
  const IndexRuns runs = make_runs(ids, most + 1);
  kernels::cuda::add_runs(const_bf16_bits(dout), runs.runs(), dout.size(1), padding, dtable,
                          current_stream());
}

at::Tensor CudaBackend::rms_norm(const at::Tensor& x, const kernels::WeightView& w,
                                 float eps) const {
  at::Tensor y = at::empty_like(x);
  kernels::cuda::rms_norm(const_bf16_bits(x), {w, nullptr}, norm_shape(x, w, eps), bf16_bits(y),
                          current_stream());
  return y;
}

at::Tensor CudaBackend::rms_norm_backward(const at::Tensor& x, const kernels::WeightView& w,
                                          const at::Tensor& dy, float eps, float* dweight) const {
  at::Tensor dx = at::empty_like(x);
  const kernels::NormShape shape = norm_shape(x, w, eps);
  NIBBLE_CHECK(shape.cols <= kernels::cuda::kMaxNormColumns, "rows of {} values, at most {}",
               shape.cols, kernels::cuda::kMaxNormColumns);
  const at::TensorOptions floats = x.options().dtype(at::kFloat);
  at::Tensor unwanted;
  if (dweight == nullptr) {
    unwanted = at::zeros({w.cols}, floats);
    dweight = unwanted.data_ptr<float>();
  }
  const at::Tensor scratch = at::empty({kernels::cuda::norm_scratch_floats(shape)}, floats);
  kernels::cuda::rms_norm_backward(const_bf16_bits(x), w.bf16(), const_bf16_bits(dy), shape,
                                   bf16_bits(dx), dweight, scratch.data_ptr<float>(),
                                   current_stream());
  return dx;
}

at::Tensor CudaBackend::linear(const at::Tensor& x, const kernels::WeightView& w) const {
  check_activations(x, w.cols, "linear input");
  if (numerics_ == Numerics::kFast) return at::mm(x, weight_matrix(w).t());
  at::Tensor y = at::empty({x.size(0), w.rows}, x.options());
  if (kernels::cuda::suits_panel_linear(w.rows, w.cols, x.size(0))) {
    kernels::cuda::panel_linear(const_bf16_bits(x), const_bf16_bits(weight_matrix(w)), w.rows,
                                w.cols, x.size(0), bf16_bits(y), current_stream());
  } else {
    kernels::cuda::linear(const_bf16_bits(x), {w, nullptr}, x.size(0), bf16_bits(y),
                          current_stream());
  }
  return y;
}

at::Tensor CudaBackend::linear_float(const at::Tensor& x, const kernels::WeightView& w) const {
  check_activations(x, w.cols, "linear input");
  if (numerics_ == Numerics::kFast) return at::mm(x, weight_matrix(w).t(), at::kFloat);
  at::Tensor y = at::empty({x.size(0), w.rows}, x.options().dtype(at::kFloat));
  if (kernels::cuda::suits_panel_linear(w.rows, w.cols, x.size(0))) {
    kernels::cuda::panel_linear(const_bf16_bits(x), const_bf16_bits(weight_matrix(w)), w.rows,
                                w.cols, x.size(0), y.data_ptr<float>(), current_stream());
  } else {
    kernels::cuda::linear(const_bf16_bits(x), {w, nullptr}, x.size(0), y.data_ptr<float>(),
                          current_stream());
  }
  return y;
}

at::Tensor CudaBackend::linear_backward(const at::Tensor& x, const at::Tensor& dy,
                                        const kernels::WeightView& w, float* dweight) const {
  const at::Tensor rounded = dy.to(at::kBFloat16);
  if (dweight != nullptr) add_weight_gradient(rounded, x, dweight);
  return at::mm(rounded, weight_matrix(w));
}

void CudaBackend::add_gram(const at::Tensor& x, at::Tensor& gram) const {
  check_activations(x, gram.size(1), "gram input");
  add_weight_gradient(x, x, gram.data_ptr<float>());
}

at::Tensor CudaBackend::rope(const at::Tensor& x, const PlacedIndex& index,
                             const kernels::RopeTable& table,
                             kernels::RopeDirection direction) const {
  at::Tensor y = at::empty_like(x);
  const auto& placed = static_cast<const CudaIndex&>(index);
  kernels::cuda::rope(const_bf16_bits(x), bf16_bits(y), placed.position.const_data_ptr<int32_t>(),
                      x.size(0), x.size(1) / (2 * table.half), table, direction, current_stream());
  return y;
}

at::Tensor CudaBackend::silu_mul(const at::Tensor& gate, const at::Tensor& up) const {
  at::Tensor out = at::empty_like(gate);
  kernels::cuda::silu_mul(const_bf16_bits(gate), const_bf16_bits(up), gate.numel(), bf16_bits(out),
                          current_stream());
  return out;
}

Backend::GateGradients CudaBackend::silu_mul_backward(const at::Tensor& gate, const at::Tensor& up,
                                                      const at::Tensor& dout) const {
  GateGradients d{at::empty_like(gate), at::empty_like(up)};
  kernels::cuda::silu_mul_backward(const_bf16_bits(gate), const_bf16_bits(up),
                                   const_bf16_bits(dout), dout.numel(), bf16_bits(d.gate),
                                   bf16_bits(d.up), current_stream());
  return d;
}

}  // namespace nibble::ops
