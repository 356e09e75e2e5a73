#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>

#include "core/base/fail.h"
#include "core/kernels_cuda/linear.h"
#include "core/kernels_cuda/router.h"
#include "core/ops_cuda/cuda_backend_impl.h"
#include "core/ops_cuda/gemm.h"

namespace nibble::ops {
namespace {

// What experts() leaves for its backward pass, by place in `saved`.
enum Saved { kPart, kInput, kGate, kUp, kActive, kPair, kPlace, kBegin };

}  // namespace

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
  std::vector<kernels::WeightView> views;
  for (int64_t e = 0; e < experts; ++e) views.push_back(first[3 * e]);
  const auto bytes = static_cast<int64_t>(views.size() * sizeof(kernels::WeightView));
  const at::Tensor table =
      at::from_blob(views.data(), {bytes}, at::TensorOptions().dtype(at::kByte)).to(x.device());
  at::Tensor y = at::empty({x.size(0), first->rows}, x.options());
  kernels::cuda::grouped_linear(
      const_bf16_bits(x),
      {*first, reinterpret_cast<const kernels::WeightView*>(table.const_data_ptr()), experts, 1},
      begin.const_data_ptr<int32_t>(), x.size(0), bf16_bits(y), current_stream());
  return y;
}

Backend::Experts CudaBackend::experts(const at::Tensor& x, const at::Tensor& weight,
                                      const at::Tensor& expert,
                                      const ExpertWeights& weights) const {
  const int64_t tokens = x.size(0);
  const int64_t top_k = weight.size(1);
  const int64_t pairs = tokens * top_k;
  const int64_t cols = x.size(1);
  const auto integers = [&](int64_t count) {
    return at::empty({count}, x.options().dtype(at::kInt));
  };
  const at::Tensor begin = integers(weights.num_experts() + 1);
  const at::Tensor pair = integers(pairs), place = integers(pairs);
  kernels::cuda::order_by_expert(expert.const_data_ptr<int32_t>(), pairs, weights.num_experts(),
                                 begin.data_ptr<int32_t>(), pair.data_ptr<int32_t>(),
                                 current_stream());
  kernels::cuda::invert_pairs(pair.const_data_ptr<int32_t>(), pairs, place.data_ptr<int32_t>(),
                              current_stream());
  const at::Tensor input = at::empty({pairs, cols}, x.options());
  kernels::cuda::gather_pairs(const_bf16_bits(x), pair.const_data_ptr<int32_t>(), pairs, top_k,
                              cols, bf16_bits(input), current_stream());
  const at::Tensor gate = grouped(input, weights, 0, begin);
  const at::Tensor up = grouped(input, weights, 1, begin);
  const at::Tensor active = silu_mul(gate, up);
  const at::Tensor part = grouped(active, weights, 2, begin);
  Experts out{at::empty_like(x), {part, input, gate, up, active, pair, place, begin}, {}};
  kernels::cuda::combine_experts(const_bf16_bits(part), place.const_data_ptr<int32_t>(),
                                 weight.const_data_ptr<float>(), tokens, top_k, cols,
                                 bf16_bits(out.y), current_stream());
  return out;
}

Backend::ExpertsGradients CudaBackend::experts_backward(const at::Tensor& x,
                                                        const at::Tensor& weight,
                                                        const std::vector<at::Tensor>& saved,
                                                        const kernels::ExpertOrder& /*order*/,
                                                        const at::Tensor& dy,
                                                        const ExpertWeights& weights) const {
  const int64_t tokens = x.size(0);
  const int64_t top_k = weight.size(1);
  const int64_t cols = x.size(1);
  const int64_t pairs = tokens * top_k;
  const int64_t experts = weights.num_experts();
  const auto* pair = saved[kPair].const_data_ptr<int32_t>();
  const auto* place = saved[kPlace].const_data_ptr<int32_t>();
  ExpertsGradients d{at::empty_like(x), at::empty_like(weight)};
  kernels::cuda::pair_dots(const_bf16_bits(saved[kPart]), place, const_bf16_bits(dy), tokens, top_k,
                           cols, d.weight.data_ptr<float>(), current_stream());
  const at::Tensor dpart = at::empty({pairs, cols}, x.options());
  kernels::cuda::gather_scaled_pairs(const_bf16_bits(dy), pair, weight.const_data_ptr<float>(),
                                     pairs, top_k, cols, bf16_bits(dpart), current_stream());
  const at::Tensor ends = saved[kBegin].narrow(0, 1, experts);
  const auto back = [&](const at::Tensor& dout, int which) {
    return at::_grouped_mm(dout, weight_panel(&weights.views[static_cast<size_t>(which)], experts),
                           ends);
  };
  const at::Tensor dactive = back(dpart, 2);
  const GateGradients inner = silu_mul_backward(saved[kGate], saved[kUp], dactive);
  at::Tensor dinput = back(inner.gate, 0);
  dinput.add_(back(inner.up, 1));
  kernels::cuda::combine_experts(const_bf16_bits(dinput), place, nullptr, tokens, top_k, cols,
                                 bf16_bits(d.x), current_stream());
  // One product an expert, in float32 to the end; the host needs to know where experts begin.
  const at::Tensor begin = saved[kBegin].cpu();
  const auto* at_expert = begin.const_data_ptr<int32_t>();
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t first = at_expert[e], count = at_expert[e + 1] - first;
    if (count == 0) continue;
    const auto add = [&](const at::Tensor& dout, const at::Tensor& in, int which) {
      float* grad = weights.grads[static_cast<size_t>(3 * e + which)];
      if (grad == nullptr) return;
      add_weight_gradient(dout.narrow(0, first, count), in.narrow(0, first, count), grad);
    };
    add(inner.gate, saved[kInput], 0);
    add(inner.up, saved[kInput], 1);
    add(dpart, saved[kActive], 2);
  }
  return d;
}

}  // namespace nibble::ops
