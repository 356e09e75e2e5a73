#include <optional>

#include "core/base/fail.h"
#include "core/ops/expert_exchange.h"
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

ExpertWeights expert_weights(const ExpertLayer& layer, bool with_grads) {
  ExpertWeights weights;
  const int64_t first = layer.first.index + 3 * layer.held_begin;
  for (int64_t i = first; i < first + 3 * layer.num_held; ++i) {
    weights.views.push_back(layer.first.source->weight(i));
    if (with_grads) {
      weights.grads.push_back(Weight{layer.first.source, i, layer.first.has_gradient}.grad());
    }
  }
  return weights;
}

// How a layer's tokens reach their experts. Without other ranks, sorted by expert they are there.
struct Dispatch {
  Backend::PairOrder order;  // of this rank's pairs
  std::optional<ExpertExchange> exchange;
  Backend::PairOrder arrived;  // of what came to this rank's experts

  const at::Tensor& begin() const { return exchange ? arrived.begin : order.begin; }
  // From sorted by expert on this rank to sorted by expert where the experts are.
  at::Tensor there(const Backend& backend, const at::Tensor& rows) const {
    if (!exchange) return rows;
    return backend.gather_pairs(exchange->to_holders(rows), arrived, 1, {});
  }
  at::Tensor back(const Backend& backend, const at::Tensor& rows) const {
    if (!exchange) return rows;
    return exchange->to_routers(backend.combine_pairs(rows, arrived, 1, {}));
  }
};

Dispatch make_dispatch(const Backend& backend, const at::Tensor& expert, const ExpertLayer& layer,
                       ProcessGroup* ranks) {
  Dispatch dispatch;
  dispatch.order = backend.order_pairs(expert, layer.num_experts);
  if (ranks == nullptr) return dispatch;
  dispatch.exchange.emplace(*ranks, dispatch.order.begin);
  dispatch.arrived = backend.order_pairs(dispatch.exchange->arrived_experts(), layer.num_held);
  return dispatch;
}

struct ExpertsFunction : torch::autograd::Function<ExpertsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& expert, const Backend* backend,
                            const ExpertLayer& layer, ProcessGroup* ranks) {
    const int64_t top_k = weight.size(1);
    Dispatch dispatch = make_dispatch(*backend, expert, layer, ranks);
    const at::Tensor input =
        dispatch.there(*backend, backend->gather_pairs(x, dispatch.order, top_k, {}));
    const Backend::GroupedMlp mlp =
        backend->grouped_mlp(input, dispatch.begin(), expert_weights(layer, false));
    const at::Tensor part = dispatch.back(*backend, mlp.y);
    // Alone, a rank gathers its rows again; from others they would have to come again.
    context->save_for_backward({ranks == nullptr ? x : input, weight, part, mlp.gate, mlp.up,
                                layer.keeps_active ? mlp.active : at::Tensor()});
    at::Tensor y = backend->combine_pairs(part, dispatch.order, top_k, weight);
    keep(context, "backend", backend);
    keep(context, "dispatch", std::move(dispatch));
    keep(context, "layer", layer);
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Backend& backend = *kept<const Backend*>(context, "backend");
    const Dispatch& dispatch = kept<Dispatch>(context, "dispatch");
    const int64_t top_k = saved[1].size(1);
    const at::Tensor dy = grads[0].contiguous();
    const at::Tensor dweight = backend.pair_dots(saved[2], dispatch.order, top_k, dy);
    const at::Tensor dinput = input_gradient(context, saved, dy);
    return {backend.combine_pairs(dispatch.back(backend, dinput), dispatch.order, top_k, {}),
            dweight,
            at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor()};
  }

  // Of what this rank's experts were given. What it takes is gone before its rows are summed.
  static at::Tensor input_gradient(AutogradContext* context, const variable_list& saved,
                                   const at::Tensor& dy) {
    const Backend& backend = *kept<const Backend*>(context, "backend");
    const Dispatch& dispatch = kept<Dispatch>(context, "dispatch");
    const at::Tensor& weight = saved[1];
    const int64_t top_k = weight.size(1);
    const at::Tensor input =
        dispatch.exchange ? saved[0] : backend.gather_pairs(saved[0], dispatch.order, top_k, {});
    const at::Tensor active = saved[5].defined() ? saved[5] : backend.silu_mul(saved[3], saved[4]);
    const at::Tensor dpart =
        dispatch.there(backend, backend.gather_pairs(dy, dispatch.order, top_k, weight));
    return backend.grouped_mlp_backward(input, {at::Tensor(), saved[3], saved[4], active}, dpart,
                                        dispatch.begin(),
                                        expert_weights(kept<ExpertLayer>(context, "layer"), true));
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
                   const ExpertLayer& layer, ProcessGroup* ranks) {
  return ExpertsFunction::apply(x, routing.weight, routing.expert, &backend, layer, ranks);
}

}  // namespace nibble::ops
