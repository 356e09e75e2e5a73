#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/ops/tape_saved.h"

namespace nibble::ops {
namespace {

struct EnterLayerFunction : torch::autograd::Function<EnterLayerFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, WeightSource* source,
                            int64_t layer) {
    source->enter_layer(layer, Pass::kForward);
    keep(context, "source", source);
    context->saved_data["layer"] = layer;
    return x.view_as(x);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    kept<WeightSource*>(context, "source")
        ->leave_layer(context->saved_data["layer"].toInt(), Pass::kBackward);
    return {grads[0], at::Tensor(), at::Tensor()};
  }
};

struct LeaveLayerFunction : torch::autograd::Function<LeaveLayerFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, WeightSource* source,
                            int64_t layer, SharedDroppedValues dropped) {
    source->leave_layer(layer, Pass::kForward);
    keep(context, "source", source);
    keep(context, "dropped", std::move(dropped));
    context->saved_data["layer"] = layer;
    return x.view_as(x);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    kept<WeightSource*>(context, "source")
        ->enter_layer(context->saved_data["layer"].toInt(), Pass::kBackward);
    // Recipes read the layer's weights.
    if (const auto& dropped = kept<SharedDroppedValues>(context, "dropped")) dropped->restore();
    return {grads[0], at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct RecomputedLayerFunction : torch::autograd::Function<RecomputedLayerFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, WeightSource* source,
                            int64_t layer, const LayerBody& body) {
    context->save_for_backward({x});
    keep(context, "source", source);
    keep(context, "body", body);
    context->saved_data["layer"] = layer;
    source->enter_layer(layer, Pass::kForward);
    at::Tensor y = body(x, Pass::kForward);
    source->leave_layer(layer, Pass::kForward);
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    WeightSource* source = kept<WeightSource*>(context, "source");
    const int64_t layer = context->saved_data["layer"].toInt();
    const at::Tensor x = context->get_saved_variables()[0].detach().set_requires_grad(true);
    source->enter_layer(layer, Pass::kBackward);
    at::Tensor dx;
    {
      const at::AutoGradMode with_gradients(true);
      const at::Tensor y = kept<LayerBody>(context, "body")(x, Pass::kBackward);
      dx = torch::autograd::grad({y}, {x}, {grads[0]})[0];
    }
    source->leave_layer(layer, Pass::kBackward);
    return {dx, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor enter_layer(const at::Tensor& x, WeightSource& source, int64_t layer) {
  return EnterLayerFunction::apply(x, &source, layer);
}

at::Tensor leave_layer(const at::Tensor& x, WeightSource& source, int64_t layer,
                       SharedDroppedValues dropped) {
  return LeaveLayerFunction::apply(x, &source, layer, std::move(dropped));
}

at::Tensor recomputed_layer(const at::Tensor& x, WeightSource& source, int64_t layer,
                            const LayerBody& body) {
  return RecomputedLayerFunction::apply(x, &source, layer, body);
}

}  // namespace nibble::ops
