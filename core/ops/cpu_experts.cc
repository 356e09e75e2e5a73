#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros_like.h>

#include "core/base/fail.h"
#include "core/ops/cpu_backend.h"
#include "core/ops/torch_parallel.h"

namespace nibble::ops {
namespace {

struct Range {
  int64_t begin, end;
};

Range range_of(const kernels::ExpertOrder& order, int64_t e) {
  return {order.begin[static_cast<size_t>(e)], order.begin[static_cast<size_t>(e) + 1]};
}

// The pairs of one expert divided by `divisor`: 1 gives pairs, top_k the tokens they came from.
at::Tensor rows_of(const kernels::ExpertOrder& order, int64_t e, int64_t divisor) {
  const Range range = range_of(order, e);
  at::Tensor rows = at::empty({range.end - range.begin}, at::TensorOptions().dtype(at::kLong));
  for (int64_t i = range.begin; i < range.end; ++i) {
    rows.data_ptr<int64_t>()[i - range.begin] = order.pair[static_cast<size_t>(i)] / divisor;
  }
  return rows;
}

}  // namespace

Backend::Route CpuBackend::route(const at::Tensor& logits, const at::Tensor& replay,
                                 const kernels::RouterShape& shape) const {
  Route out;
  out.prob = at::empty_like(logits);
  out.weight = at::empty({shape.tokens, shape.top_k}, logits.options());
  out.expert = replay.defined()
                   ? replay
                   : at::empty({shape.tokens, shape.top_k}, logits.options().dtype(at::kInt));
  kernels::router_top_k(
      logits.const_data_ptr<float>(), shape,
      replay.defined() ? kernels::RouterMode::kReplay : kernels::RouterMode::kChoose,
      out.prob.data_ptr<float>(), out.expert.data_ptr<int32_t>(), out.weight.data_ptr<float>(),
      torch_parallel());
  return out;
}

at::Tensor CpuBackend::route_backward(const Route& route, const at::Tensor& dweight,
                                      const kernels::RouterShape& shape) const {
  at::Tensor dlogits = at::empty_like(route.prob);
  kernels::router_backward(route.prob.const_data_ptr<float>(),
                           route.expert.const_data_ptr<int32_t>(), dweight.const_data_ptr<float>(),
                           shape, dlogits.data_ptr<float>(), torch_parallel());
  return dlogits;
}

Backend::Experts CpuBackend::experts(const at::Tensor& x, const at::Tensor& weight,
                                     const at::Tensor& expert, const ExpertWeights& weights) const {
  const int64_t tokens = x.size(0);
  const int64_t top_k = weight.size(1);
  Experts out;
  out.order = kernels::order_by_expert(expert.const_data_ptr<int32_t>(), tokens, top_k,
                                       weights.num_experts());
  at::Tensor part = at::empty({tokens * top_k, x.size(1)}, x.options());
  out.saved = {part};
  for (int64_t e = 0; e < weights.num_experts(); ++e) {
    const at::Tensor rows = rows_of(out.order, e, top_k);
    if (rows.size(0) == 0) continue;
    const kernels::WeightView* w = &weights.views[static_cast<size_t>(3 * e)];
    const at::Tensor input = x.index_select(0, rows);
    const at::Tensor gate = linear(input, w[0]);
    const at::Tensor up = linear(input, w[1]);
    const at::Tensor active = silu_mul(gate, up);
    part.index_copy_(0, rows_of(out.order, e, 1), linear(active, w[2]));
    out.saved.insert(out.saved.end(), {gate, up, active});
  }
  out.y = at::empty_like(x);
  kernels::combine_experts(part.const_data_ptr<float>(), weight.const_data_ptr<float>(), tokens,
                           top_k, x.size(1), out.y.data_ptr<float>(), torch_parallel());
  return out;
}

Backend::ExpertsGradients CpuBackend::experts_backward(
    const at::Tensor& x, const at::Tensor& weight, const std::vector<at::Tensor>& saved,
    const kernels::ExpertOrder& order, const at::Tensor& dy, const ExpertWeights& weights) const {
  const int64_t top_k = weight.size(1);
  ExpertsGradients d{
      at::zeros_like(x),
      saved[0].view({x.size(0), top_k, x.size(1)}).mul(dy.unsqueeze(1)).sum(2),
  };
  size_t next = 1;
  for (int64_t e = 0; e < weights.num_experts(); ++e) {
    const at::Tensor rows = rows_of(order, e, top_k);
    if (rows.size(0) == 0) continue;
    const auto at_weight = static_cast<size_t>(3 * e);
    const kernels::WeightView* w = &weights.views[at_weight];
    float* const* grad = &weights.grads[at_weight];
    const at::Tensor& gate = saved[next];
    const at::Tensor& up = saved[next + 1];
    const at::Tensor& active = saved[next + 2];
    next += 3;
    const at::Tensor scale = weight.view({-1, 1}).index_select(0, rows_of(order, e, 1));
    const at::Tensor dpart = dy.index_select(0, rows).mul(scale);
    const GateGradients inner =
        silu_mul_backward(gate, up, linear_backward(active, dpart, w[2], grad[2]));
    const at::Tensor input = x.index_select(0, rows);
    at::Tensor dinput = linear_backward(input, inner.gate, w[0], grad[0]);
    dinput.add_(linear_backward(input, inner.up, w[1], grad[1]));
    d.x.index_add_(0, rows, dinput);
  }
  return d;
}

}  // namespace nibble::ops
