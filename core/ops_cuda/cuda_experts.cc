#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>

#include "core/base/fail.h"
#include "core/kernels_cuda/linear.h"
#include "core/kernels_cuda/panel_linear.h"
#include "core/kernels_cuda/router.h"
#include "core/ops_cuda/cuda_backend_impl.h"
#include "core/ops_cuda/gemm.h"

namespace nibble::ops {
Backend::Route CudaBackend::route(const at::Tensor& logits, const at::Tensor& replay,
                                  const kernels::RouterShape& shape) const {
  Route out;
  out.prob = at::empty_like(logits);
  out.weight = at::empty({shape.tokens, shape.top_k}, logits.options());
  out.expert = replay.defined()
                   ? replay
                   : at::empty({shape.tokens, shape.top_k}, logits.options().dtype(at::kInt));
  kernels::cuda::router_top_k(
      logits.const_data_ptr<float>(), shape,
      replay.defined() ? kernels::RouterMode::kReplay : kernels::RouterMode::kChoose,
      out.prob.data_ptr<float>(), out.expert.data_ptr<int32_t>(), out.weight.data_ptr<float>(),
      current_stream());
  return out;
}

at::Tensor CudaBackend::route_backward(const Route& route, const at::Tensor& dweight,
                                       const kernels::RouterShape& shape) const {
  at::Tensor dlogits = at::empty_like(route.prob);
  kernels::cuda::router_backward(
      route.prob.const_data_ptr<float>(), route.expert.const_data_ptr<int32_t>(),
      dweight.const_data_ptr<float>(), shape, dlogits.data_ptr<float>(), current_stream());
  return dlogits;
}

at::Tensor CudaBackend::grouped(const at::Tensor& x, const ExpertWeights& weights, int which,
                                const at::Tensor& begin) const {
  const int64_t experts = weights.num_experts();
  const kernels::WeightView* first = &weights.views[static_cast<size_t>(which)];
  if (numerics_ == Numerics::kFast) {
    return at::_grouped_mm(x, weight_panel(first, experts).transpose(1, 2),
                           begin.narrow(0, 1, experts));
  }
  at::Tensor y = at::empty({x.size(0), first->rows}, x.options());
  if (kernels::cuda::suits_panel_linear(first->rows, first->cols, x.size(0) / experts)) {
    kernels::cuda::grouped_panel_linear(
        const_bf16_bits(x), const_bf16_bits(weight_panel(first, experts)), experts, first->rows,
        first->cols, begin.const_data_ptr<int32_t>(), x.size(0), bf16_bits(y), current_stream());
    return y;
  }
  std::vector<kernels::WeightView> views;
  for (int64_t e = 0; e < experts; ++e) views.push_back(first[3 * e]);
  const auto bytes = static_cast<int64_t>(views.size() * sizeof(kernels::WeightView));
  const at::Tensor table =
      at::from_blob(views.data(), {bytes}, at::TensorOptions().dtype(at::kByte)).to(x.device());
  kernels::cuda::grouped_linear(
      const_bf16_bits(x),
      {*first, reinterpret_cast<const kernels::WeightView*>(table.const_data_ptr()), experts, 1},
      begin.const_data_ptr<int32_t>(), x.size(0), bf16_bits(y), current_stream());
  return y;
}

Backend::PairOrder CudaBackend::order_pairs(const at::Tensor& expert, int64_t num_experts) const {
  const int64_t pairs = expert.numel();
  const auto integers = [&](int64_t count) { return at::empty({count}, expert.options()); };
  PairOrder out{integers(num_experts + 1), integers(pairs), integers(pairs)};
  if (pairs == 0) {
    out.begin.zero_();
    return out;
  }
  kernels::cuda::order_by_expert(expert.const_data_ptr<int32_t>(), pairs, num_experts,
                                 out.begin.data_ptr<int32_t>(), out.pair.data_ptr<int32_t>(),
                                 current_stream());
  kernels::cuda::invert_pairs(out.pair.const_data_ptr<int32_t>(), pairs,
                              out.place.data_ptr<int32_t>(), current_stream());
  return out;
}

at::Tensor CudaBackend::gather_pairs(const at::Tensor& x, const PairOrder& order, int64_t top_k,
                                     const at::Tensor& scale) const {
  const int64_t pairs = order.pair.numel();
  const int64_t cols = x.size(1);
  at::Tensor out = at::empty({pairs, cols}, x.options());
  if (pairs == 0) return out;
  const auto* pair = order.pair.const_data_ptr<int32_t>();
  if (scale.defined()) {
    kernels::cuda::gather_scaled_pairs(const_bf16_bits(x), pair, scale.const_data_ptr<float>(),
                                       pairs, top_k, cols, bf16_bits(out), current_stream());
  } else {
    kernels::cuda::gather_pairs(const_bf16_bits(x), pair, pairs, top_k, cols, bf16_bits(out),
                                current_stream());
  }
  return out;
}

at::Tensor CudaBackend::combine_pairs(const at::Tensor& part, const PairOrder& order, int64_t top_k,
                                      const at::Tensor& weight) const {
  const int64_t tokens = order.pair.numel() / top_k;
  at::Tensor y = at::empty({tokens, part.size(1)}, part.options());
  if (tokens == 0) return y;
  kernels::cuda::combine_experts(const_bf16_bits(part), order.place.const_data_ptr<int32_t>(),
                                 weight.defined() ? weight.const_data_ptr<float>() : nullptr,
                                 tokens, top_k, part.size(1), bf16_bits(y), current_stream());
  return y;
}

at::Tensor CudaBackend::pair_dots(const at::Tensor& part, const PairOrder& order, int64_t top_k,
                                  const at::Tensor& dy) const {
  at::Tensor dots = at::empty({dy.size(0), top_k}, dy.options().dtype(at::kFloat));
  kernels::cuda::pair_dots(const_bf16_bits(part), order.place.const_data_ptr<int32_t>(),
                           const_bf16_bits(dy), dy.size(0), top_k, dy.size(1),
                           dots.data_ptr<float>(), current_stream());
  return dots;
}

Backend::GroupedMlp CudaBackend::grouped_mlp(const at::Tensor& x, const at::Tensor& begin,
                                             const ExpertWeights& weights) const {
  if (x.size(0) == 0) {
    const at::Tensor none = at::empty({0, weights.views[0].rows}, x.options());
    return {at::empty_like(x), none, none, none};
  }
  GroupedMlp out;
  out.gate = grouped(x, weights, 0, begin);
  out.up = grouped(x, weights, 1, begin);
  out.active = silu_mul(out.gate, out.up);
  out.y = grouped(out.active, weights, 2, begin);
  return out;
}

at::Tensor CudaBackend::grouped_mlp_backward(const at::Tensor& x, const GroupedMlp& result,
                                             const at::Tensor& dy, const at::Tensor& begin,
                                             const ExpertWeights& weights) const {
  if (x.size(0) == 0) return at::empty_like(x);
  const int64_t experts = weights.num_experts();
  const at::Tensor ends = begin.narrow(0, 1, experts);
  const auto back = [&](const at::Tensor& dout, int which) {
    return at::_grouped_mm(dout, weight_panel(&weights.views[static_cast<size_t>(which)], experts),
                           ends);
  };
  const GateGradients inner = silu_mul_backward(result.gate, result.up, back(dy, 2));
  at::Tensor dx = back(inner.gate, 0);
  dx.add_(back(inner.up, 1));
  // One product an expert, in float32 to the end; the host needs to know where experts begin.
  const at::Tensor begin_on_host = begin.cpu();
  const auto* at_expert = begin_on_host.const_data_ptr<int32_t>();
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t first = at_expert[e], count = at_expert[e + 1] - first;
    if (count == 0) continue;
    const auto add = [&](const at::Tensor& dout, const at::Tensor& in, int which) {
      float* grad = weights.grads[static_cast<size_t>(3 * e + which)];
      if (grad == nullptr) return;
      add_weight_gradient(dout.narrow(0, first, count), in.narrow(0, first, count), grad);
    };
    add(inner.gate, x, 0);
    add(inner.up, x, 1);
    add(dy, result.active, 2);
  }
  return dx;
}

}  // namespace nibble::ops
