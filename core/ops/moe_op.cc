#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros_like.h>

#include "core/base/fail.h"
#include "core/kernels/activation.h"
#include "core/kernels/expert_order.h"
#include "core/kernels/linear.h"
#include "core/kernels/router.h"
#include "core/ops/tape_saved.h"
#include "core/ops/torch_parallel.h"
#include "core/tensor/check.h"

namespace nibble::ops {
namespace {

// Not a differentiable input, and possibly undefined: autograd must not look inside.
struct Replay {
  at::Tensor expert;
};

struct RouteFunction : torch::autograd::Function<RouteFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& logits,
                               const Replay& given, kernels::RouterShape shape) {
    const at::Tensor& replay = given.expert;
    at::Tensor prob = at::empty_like(logits);
    at::Tensor weight = at::empty({shape.tokens, shape.top_k}, logits.options());
    at::Tensor expert =
        replay.defined() ? replay
                         : at::empty({shape.tokens, shape.top_k}, logits.options().dtype(at::kInt));
    kernels::router_top_k(
        logits.const_data_ptr<float>(), shape,
        replay.defined() ? kernels::RouterMode::kReplay : kernels::RouterMode::kChoose,
        prob.data_ptr<float>(), expert.data_ptr<int32_t>(), weight.data_ptr<float>(),
        torch_parallel());
    context->save_for_backward({prob, expert});
    context->mark_non_differentiable({expert});
    keep(context, "shape", shape);
    return {weight, expert};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor dweight = grads[0].contiguous();
    at::Tensor dlogits = at::empty_like(saved[0]);
    kernels::router_backward(saved[0].const_data_ptr<float>(), saved[1].const_data_ptr<int32_t>(),
                             dweight.const_data_ptr<float>(),
                             kept<kernels::RouterShape>(context, "shape"),
                             dlogits.data_ptr<float>(), torch_parallel());
    return {dlogits, at::Tensor(), at::Tensor()};
  }
};

// Rows of `source` that the pairs of one expert came from.
at::Tensor token_rows(const kernels::ExpertOrder& order, int64_t e, int64_t top_k) {
  const auto begin = order.begin[static_cast<size_t>(e)];
  const auto end = order.begin[static_cast<size_t>(e) + 1];
  at::Tensor rows = at::empty({end - begin}, at::TensorOptions().dtype(at::kLong));
  for (int64_t i = begin; i < end; ++i) {
    rows.data_ptr<int64_t>()[i - begin] = order.pair[static_cast<size_t>(i)] / top_k;
  }
  return rows;
}

at::Tensor pair_rows(const kernels::ExpertOrder& order, int64_t e) {
  const auto begin = order.begin[static_cast<size_t>(e)];
  const auto end = order.begin[static_cast<size_t>(e) + 1];
  at::Tensor rows = at::empty({end - begin}, at::TensorOptions().dtype(at::kLong));
  for (int64_t i = begin; i < end; ++i) {
    rows.data_ptr<int64_t>()[i - begin] = order.pair[static_cast<size_t>(i)];
  }
  return rows;
}

at::Tensor expert_linear(const at::Tensor& x, const Weight& weight) {
  const kernels::WeightView w = weight.source->weight(weight.index);
  at::Tensor y = at::empty({x.size(0), w.rows}, x.options());
  kernels::linear(x.const_data_ptr<float>(), w, x.size(0), y.data_ptr<float>(), w.rows,
                  torch_parallel());
  return y;
}

struct ExpertsFunction : torch::autograd::Function<ExpertsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& expert, Weight first, int64_t num_experts) {
    const int64_t tokens = x.size(0);
    const int64_t top_k = weight.size(1);
    const auto order =
        kernels::order_by_expert(expert.const_data_ptr<int32_t>(), tokens, top_k, num_experts);
    at::Tensor part = at::empty({tokens * top_k, x.size(1)}, x.options());
    variable_list saved = {x, weight, part};
    for (int64_t e = 0; e < num_experts; ++e) {
      const at::Tensor rows = token_rows(order, e, top_k);
      if (rows.size(0) == 0) continue;
      const at::Tensor input = x.index_select(0, rows);
      const at::Tensor gate = expert_linear(input, {first.source, first.index + 3 * e});
      const at::Tensor up = expert_linear(input, {first.source, first.index + 3 * e + 1});
      at::Tensor active = at::empty_like(gate);
      kernels::silu_mul(gate.const_data_ptr<float>(), up.const_data_ptr<float>(), gate.numel(),
                        active.data_ptr<float>(), torch_parallel());
      part.index_copy_(0, pair_rows(order, e),
                       expert_linear(active, {first.source, first.index + 3 * e + 2}));
      saved.insert(saved.end(), {gate, up, active});
    }
    at::Tensor y = at::empty_like(x);
    kernels::combine_experts(part.const_data_ptr<float>(), weight.const_data_ptr<float>(), tokens,
                             top_k, x.size(1), y.data_ptr<float>(), torch_parallel());
    context->save_for_backward(saved);
    keep(context, "order", order);
    keep(context, "first", first);
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto& order = kept<kernels::ExpertOrder>(context, "order");
    const Weight first = kept<Weight>(context, "first");
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor dy = grads[0].contiguous();
    const int64_t top_k = weight.size(1);
    at::Tensor dx = at::zeros_like(x);
    const at::Tensor dweight =
        saved[2].view({x.size(0), top_k, x.size(1)}).mul(dy.unsqueeze(1)).sum(2);
    const auto num_experts = static_cast<int64_t>(order.begin.size()) - 1;
    size_t next = 3;
    for (int64_t e = 0; e < num_experts; ++e) {
      const at::Tensor rows = token_rows(order, e, top_k);
      if (rows.size(0) == 0) continue;
      const at::Tensor& gate = saved[next];
      const at::Tensor& up = saved[next + 1];
      const at::Tensor& active = saved[next + 2];
      next += 3;
      const at::Tensor scale = weight.view({-1, 1}).index_select(0, pair_rows(order, e));
      const at::Tensor dpart = dy.index_select(0, rows).mul(scale);
      const at::Tensor dactive =
          linear_backward(active, dpart, {first.source, first.index + 3 * e + 2});
      at::Tensor dgate = at::empty_like(gate);
      at::Tensor dup = at::empty_like(up);
      kernels::silu_mul_backward(gate.const_data_ptr<float>(), up.const_data_ptr<float>(),
                                 dactive.const_data_ptr<float>(), gate.numel(),
                                 dgate.data_ptr<float>(), dup.data_ptr<float>(), torch_parallel());
      const at::Tensor input = x.index_select(0, rows);
      at::Tensor dinput = linear_backward(input, dgate, {first.source, first.index + 3 * e});
      dinput.add_(linear_backward(input, dup, {first.source, first.index + 3 * e + 1}));
      dx.index_add_(0, rows, dinput);
    }
    return {dx, dweight, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

Routing route(const at::Tensor& logits, const at::Tensor& replay, kernels::RouterShape shape) {
  check_matrix(logits, shape.experts, "router logits");
  shape.tokens = logits.size(0);
  auto out = RouteFunction::apply(logits, Replay{replay}, shape);
  return {out[1], out[0]};
}

at::Tensor experts(const at::Tensor& x, const Routing& routing, Weight first, int64_t num_experts) {
  return ExpertsFunction::apply(x, routing.weight, routing.expert, first, num_experts);
}

}  // namespace nibble::ops
