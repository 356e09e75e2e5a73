#include "core/ops/cpu_backend.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "core/base/fail.h"
#include "core/kernels/activation.h"
#include "core/kernels/linear.h"
#include "core/kernels/norm.h"
#include "core/ops/torch_parallel.h"
#include "core/tensor/check.h"

namespace nibble::ops {
namespace {

struct CpuIndex final : PlacedIndex {
  explicit CpuIndex(SharedIndex i) : index(std::move(i)) {}
  SharedIndex index;
};

const PackedIndex& host_index(const PlacedIndex& index) {
  return *static_cast<const CpuIndex&>(index).index;
}

kernels::NormShape norm_shape(const at::Tensor& x, const kernels::WeightView& w, float eps) {
  NIBBLE_CHECK(
      w.format == kernels::WeightFormat::kBf16 && x.is_contiguous() && x.numel() % w.cols == 0,
      "rms_norm: {} elements in rows of {}", x.numel(), w.cols);
  return {x.numel() / w.cols, w.cols, eps};
}

}  // namespace

CpuBackend::CpuBackend() : weight_kernels_(torch_parallel()) {}

const CpuBackend& cpu_backend() {
  static const CpuBackend instance;
  return instance;
}

at::TensorOptions CpuBackend::options() const { return at::TensorOptions().dtype(at::kFloat); }

SharedPlacedIndex CpuBackend::place(const SharedIndex& index) const {
  return std::make_shared<CpuIndex>(index);
}

at::Tensor CpuBackend::embed(const at::Tensor& ids, const kernels::WeightView& table) const {
  at::Tensor out = at::empty({ids.size(0), table.cols}, options());
  kernels::embed(ids.const_data_ptr<int32_t>(), ids.size(0), table.bf16(), table.cols,
                 out.data_ptr<float>(), torch_parallel());
  return out;
}

void CpuBackend::embed_backward(const at::Tensor& ids, int64_t padding, const at::Tensor& dout,
                                float* dtable) const {
  if (dtable == nullptr) return;
  kernels::embed_backward(ids.const_data_ptr<int32_t>(), ids.size(0), static_cast<int32_t>(padding),
                          dout.const_data_ptr<float>(), dout.size(1), dtable, torch_parallel());
}

at::Tensor CpuBackend::rms_norm(const at::Tensor& x, const kernels::WeightView& w,
                                float eps) const {
  at::Tensor y = at::empty_like(x);
  kernels::rms_norm(x.const_data_ptr<float>(), w.bf16(), norm_shape(x, w, eps), y.data_ptr<float>(),
                    torch_parallel());
  return y;
}

at::Tensor CpuBackend::rms_norm_backward(const at::Tensor& x, const kernels::WeightView& w,
                                         const at::Tensor& dy, float eps, float* dweight) const {
  at::Tensor dx = at::empty_like(x);
  at::Tensor unwanted;
  if (dweight == nullptr) {
    unwanted = at::zeros({w.cols}, x.options());
    dweight = unwanted.data_ptr<float>();
  }
  kernels::rms_norm_backward(x.const_data_ptr<float>(), w.bf16(), dy.const_data_ptr<float>(),
                             norm_shape(x, w, eps), dx.data_ptr<float>(), dweight,
                             torch_parallel());
  return dx;
}

at::Tensor CpuBackend::linear(const at::Tensor& x, const kernels::WeightView& w) const {
  check_matrix(x, w.cols, "linear input");
  at::Tensor y = at::empty({x.size(0), w.rows}, x.options());
  kernels::linear(x.const_data_ptr<float>(), w, x.size(0), y.data_ptr<float>(), w.rows,
                  torch_parallel());
  return y;
}

at::Tensor CpuBackend::linear_float(const at::Tensor& x, const kernels::WeightView& w) const {
  return linear(x, w);
}

at::Tensor CpuBackend::linear_backward(const at::Tensor& x, const at::Tensor& dy,
                                       const kernels::WeightView& w, float* dweight) const {
  if (dweight != nullptr) {
    at::from_blob(dweight, {w.rows, w.cols}, options()).addmm_(dy.t(), x);
  }
  // The panel lives for this product only: dX = dY w'.
  at::Tensor panel = at::empty({w.rows, w.cols}, x.options());
  kernels::dequantize(w, panel.data_ptr<float>(), torch_parallel());
  return at::mm(dy, panel);
}

void CpuBackend::add_gram(const at::Tensor& x, at::Tensor& gram) const {
  constexpr int64_t kRows = 256;
  const int64_t cols = gram.size(1);
  // Symmetric: rows from their diagonal on, half the work.
  for (int64_t i = 0; i < cols; i += kRows) {
    const int64_t rows = std::min(kRows, cols - i);
    gram.narrow(0, i, rows)
        .narrow(1, i, cols - i)
        .addmm_(x.narrow(1, i, rows).t(), x.narrow(1, i, cols - i));
  }
}

at::Tensor CpuBackend::rope(const at::Tensor& x, const PlacedIndex& index,
                            const kernels::RopeTable& table,
                            kernels::RopeDirection direction) const {
  at::Tensor y = x.clone();
  kernels::rope(y.data_ptr<float>(), host_index(index).position.data(), x.size(0),
                x.size(1) / (2 * table.half), table, direction, torch_parallel());
  return y;
}

Backend::Attention CpuBackend::attention(const at::Tensor& q, const at::Tensor& k,
                                         const at::Tensor& v, const PlacedIndex& index,
                                         const kernels::AttentionShape& shape) const {
  check_matrix(q, shape.heads * shape.head_dim, "attention q");
  check_matrix(k, shape.kv_heads * shape.head_dim, "attention k");
  check_matrix(v, shape.kv_heads * shape.head_dim, "attention v");
  Attention result{at::empty_like(q), at::empty({q.size(0), shape.heads}, q.options())};
  kernels::attention(q.const_data_ptr<float>(), k.const_data_ptr<float>(),
                     v.const_data_ptr<float>(), host_index(index).keys(), shape,
                     result.out.data_ptr<float>(), result.lse.data_ptr<float>(), torch_parallel());
  return result;
}

Backend::AttentionInputs CpuBackend::attention_backward(
    const AttentionInputs& in, const Attention& result, const at::Tensor& dout,
    const PlacedIndex& index, const kernels::AttentionShape& shape) const {
  AttentionInputs d{at::empty_like(in.q), at::empty_like(in.k), at::empty_like(in.v)};
  const kernels::AttentionGradient gradient{in.q.const_data_ptr<float>(),
                                            in.k.const_data_ptr<float>(),
                                            in.v.const_data_ptr<float>(),
                                            result.out.const_data_ptr<float>(),
                                            result.lse.const_data_ptr<float>(),
                                            dout.const_data_ptr<float>(),
                                            d.q.data_ptr<float>(),
                                            d.k.data_ptr<float>(),
                                            d.v.data_ptr<float>(),
                                            in.k.size(0)};
  kernels::attention_backward(gradient, host_index(index).keys(), shape, torch_parallel());
  return d;
}

at::Tensor CpuBackend::silu_mul(const at::Tensor& gate, const at::Tensor& up) const {
  at::Tensor out = at::empty_like(gate);
  kernels::silu_mul(gate.const_data_ptr<float>(), up.const_data_ptr<float>(), gate.numel(),
                    out.data_ptr<float>(), torch_parallel());
  return out;
}

Backend::GateGradients CpuBackend::silu_mul_backward(const at::Tensor& gate, const at::Tensor& up,
                                                     const at::Tensor& dout) const {
  GateGradients d{at::empty_like(gate), at::empty_like(up)};
  kernels::silu_mul_backward(gate.const_data_ptr<float>(), up.const_data_ptr<float>(),
                             dout.const_data_ptr<float>(), dout.numel(), d.gate.data_ptr<float>(),
                             d.up.data_ptr<float>(), torch_parallel());
  return d;
}

}  // namespace nibble::ops
