#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>

#include <algorithm>

#include "core/kernels/activation.h"
#include "core/kernels/expert_order.h"
#include "core/kernels/linear.h"
#include "core/ops/cpu_backend.h"
#include "core/ops/torch_parallel.h"

namespace nibble::ops {
namespace {

// Index of a pair's token, or of its place, as index_select wants it.
at::Tensor wide(const at::Tensor& index) { return index.to(at::kLong); }
at::Tensor tokens_of(const at::Tensor& pair, int64_t top_k) {
  return wide(pair).floor_divide_(top_k);
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

Backend::PairOrder CpuBackend::order_pairs(const at::Tensor& expert, int64_t num_experts) const {
  const int64_t pairs = expert.numel();
  const auto order = kernels::order_by_expert(expert.const_data_ptr<int32_t>(), expert.size(0),
                                              expert.size(1), num_experts);
  const auto integers = [](int64_t count) {
    return at::empty({count}, at::TensorOptions().dtype(at::kInt));
  };
  PairOrder out{integers(num_experts + 1), integers(pairs), integers(pairs)};
  std::copy(order.begin.begin(), order.begin.end(), out.begin.data_ptr<int32_t>());
  std::copy(order.pair.begin(), order.pair.end(), out.pair.data_ptr<int32_t>());
  auto* place = out.place.data_ptr<int32_t>();
  for (int64_t i = 0; i < pairs; ++i) {
    place[order.pair[static_cast<size_t>(i)]] = static_cast<int32_t>(i);
  }
  return out;
}

at::Tensor CpuBackend::gather_pairs(const at::Tensor& x, const PairOrder& order, int64_t top_k,
                                    const at::Tensor& scale) const {
  at::Tensor rows = x.index_select(0, tokens_of(order.pair, top_k));
  if (scale.defined()) rows.mul_(scale.reshape({-1, 1}).index_select(0, wide(order.pair)));
  return rows;
}

at::Tensor CpuBackend::combine_pairs(const at::Tensor& part, const PairOrder& order, int64_t top_k,
                                     const at::Tensor& weight) const {
  const int64_t tokens = order.pair.numel() / top_k;
  const int64_t cols = part.size(1);
  const at::Tensor by_pair = part.index_select(0, wide(order.place));
  if (!weight.defined()) {
    return top_k == 1 ? by_pair : by_pair.view({tokens, top_k, cols}).sum(1);
  }
  at::Tensor y = at::empty({tokens, cols}, part.options());
  kernels::combine_experts(by_pair.const_data_ptr<float>(), weight.const_data_ptr<float>(), tokens,
                           top_k, cols, y.data_ptr<float>(), torch_parallel());
  return y;
}

at::Tensor CpuBackend::pair_dots(const at::Tensor& part, const PairOrder& order, int64_t top_k,
                                 const at::Tensor& dy) const {
  const at::Tensor by_pair = part.index_select(0, wide(order.place));
  return by_pair.view({dy.size(0), top_k, dy.size(1)}).mul(dy.unsqueeze(1)).sum(2);
}

Backend::GroupedMlp CpuBackend::grouped_mlp(const at::Tensor& x, const at::Tensor& begin,
                                            const ExpertWeights& weights) const {
  const int64_t width = weights.views[0].rows;
  GroupedMlp out{at::empty_like(x), at::empty({x.size(0), width}, x.options()), {}, {}};
  out.up = at::empty_like(out.gate);
  out.active = at::empty_like(out.gate);
  const auto* at_expert = begin.const_data_ptr<int32_t>();
  for (int64_t e = 0; e < weights.num_experts(); ++e) {
    const int64_t first = at_expert[e], count = at_expert[e + 1] - first;
    if (count == 0) continue;
    const kernels::WeightView* w = &weights.views[static_cast<size_t>(3 * e)];
    const auto product = [&](const at::Tensor& in, const kernels::WeightView& matrix,
                             at::Tensor& to) {
      kernels::linear(in.const_data_ptr<float>() + first * matrix.cols, matrix, count,
                      to.data_ptr<float>() + first * matrix.rows, matrix.rows, torch_parallel());
    };
    product(x, w[0], out.gate);
    product(x, w[1], out.up);
    kernels::silu_mul(out.gate.const_data_ptr<float>() + first * width,
                      out.up.const_data_ptr<float>() + first * width, count * width,
                      out.active.data_ptr<float>() + first * width, torch_parallel());
    product(out.active, w[2], out.y);
  }
  return out;
}

at::Tensor CpuBackend::grouped_mlp_backward(const at::Tensor& x, const GroupedMlp& result,
                                            const at::Tensor& dy, const at::Tensor& begin,
                                            const ExpertWeights& weights) const {
  at::Tensor dx = at::empty_like(x);
  const auto* at_expert = begin.const_data_ptr<int32_t>();
  for (int64_t e = 0; e < weights.num_experts(); ++e) {
    const int64_t first = at_expert[e], count = at_expert[e + 1] - first;
    if (count == 0) continue;
    const auto rows = [&](const at::Tensor& all) { return all.narrow(0, first, count); };
    const auto at_weight = static_cast<size_t>(3 * e);
    const kernels::WeightView* w = &weights.views[at_weight];
    float* const* grad = &weights.grads[at_weight];
    const GateGradients inner =
        silu_mul_backward(rows(result.gate), rows(result.up),
                          linear_backward(rows(result.active), rows(dy), w[2], grad[2]));
    at::Tensor to = rows(dx);
    to.copy_(linear_backward(rows(x), inner.gate, w[0], grad[0]));
    to.add_(linear_backward(rows(x), inner.up, w[1], grad[1]));
  }
  return dx;
}

}  // namespace nibble::ops
