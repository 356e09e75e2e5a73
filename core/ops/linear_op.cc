#include "core/ops/tape_saved.h"

namespace nibble::ops {
namespace {

template <bool kFloat>
struct LinearFunction : torch::autograd::Function<LinearFunction<kFloat>> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const Backend* backend,
                            Weight weight) {
    const kernels::WeightView w = weight.source->weight(weight.index);
    context->save_for_backward({x});
    keep(context, "backend", backend);
    keep(context, "weight", weight);
    return kFloat ? backend->linear_float(x, w) : backend->linear(x, w);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const Weight weight = kept<Weight>(context, "weight");
    const at::Tensor x = context->get_saved_variables()[0];
    return {kept<const Backend*>(context, "backend")
                ->linear_backward(x, grads[0].contiguous(), weight.source->weight(weight.index),
                                  weight.grad()),
            at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor linear(const Backend& backend, const at::Tensor& x, Weight weight) {
  return LinearFunction<false>::apply(x, &backend, weight);
}

at::Tensor linear_float(const Backend& backend, const at::Tensor& x, Weight weight) {
  return LinearFunction<true>::apply(x, &backend, weight);
}

}  // namespace nibble::ops
