#include "core/base/fail.h"
#include "core/ops/tape_saved.h"
#include "core/tensor/check.h"

namespace nibble::ops {
namespace {

// Not a differentiable input, and possibly undefined: autograd must not look inside.
struct Replay {
  at::Tensor expert;
};

struct RouteFunction : torch::autograd::Function<RouteFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& logits,
                               const Backend* backend, const Replay& replay,
                               kernels::RouterShape shape) {
    const Backend::Route out = backend->route(logits, replay.expert, shape);
    context->save_for_backward({out.prob, out.expert, out.weight});
    context->mark_non_differentiable({out.expert});
    keep(context, "backend", backend);
    keep(context, "shape", shape);
    return {out.weight, out.expert};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {kept<const Backend*>(context, "backend")
                ->route_backward({saved[0], saved[1], saved[2]}, grads[0].contiguous(),
                                 kept<kernels::RouterShape>(context, "shape")),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

ExpertWeights expert_weights(const Weight& first, int64_t num_experts, bool with_grads) {
  ExpertWeights weights;
  for (int64_t i = first.index; i < first.index + 3 * num_experts; ++i) {
    weights.views.push_back(first.source->weight(i));
    if (with_grads) weights.grads.push_back(first.source->grad(i));
  }
  return weights;
}

struct ExpertsFunction : torch::autograd::Function<ExpertsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& expert, const Backend* backend, Weight first,
                            int64_t num_experts) {
    Backend::Experts out =
        backend->experts(x, weight, expert, expert_weights(first, num_experts, false));
    variable_list saved = {x, weight};
    saved.insert(saved.end(), out.saved.begin(), out.saved.end());
    context->save_for_backward(std::move(saved));
    keep(context, "backend", backend);
    keep(context, "order", std::move(out.order));
    keep(context, "first", first);
    context->saved_data["num_experts"] = num_experts;
    return out.y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto weights = expert_weights(kept<Weight>(context, "first"),
                                        context->saved_data["num_experts"].toInt(), true);
    const auto d = kept<const Backend*>(context, "backend")
                       ->experts_backward(saved[0], saved[1], {saved.begin() + 2, saved.end()},
                                          kept<kernels::ExpertOrder>(context, "order"),
                                          grads[0].contiguous(), weights);
    return {d.x, d.weight, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

Routing route(const Backend& backend, const at::Tensor& logits, const at::Tensor& replay,
              kernels::RouterShape shape) {
  NIBBLE_CHECK(
      logits.dim() == 2 && logits.size(1) == shape.experts && logits.scalar_type() == at::kFloat,
      "router logits: {}", describe(logits));
  shape.tokens = logits.size(0);
  auto out = RouteFunction::apply(logits, &backend, Replay{replay}, shape);
  return {out[1], out[0]};
}

at::Tensor experts(const Backend& backend, const at::Tensor& x, const Routing& routing,
                   Weight first, int64_t num_experts) {
  return ExpertsFunction::apply(x, routing.weight, routing.expert, &backend, first, num_experts);
}

}  // namespace nibble::ops
