#include "core/ops/tape_saved.h"

namespace nibble::ops {
namespace {

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const Backend* backend,
                            Weight weight, double eps) {
    context->save_for_backward({x});
    keep(context, "backend", backend);
    keep(context, "weight", weight);
    context->saved_data["eps"] = eps;
    return backend->rms_norm(x, weight.source->weight(weight.index), static_cast<float>(eps));
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const Weight weight = kept<Weight>(context, "weight");
    const at::Tensor x = context->get_saved_variables()[0];
    const auto eps = static_cast<float>(context->saved_data["eps"].toDouble());
    return {kept<const Backend*>(context, "backend")
                ->rms_norm_backward(x, weight.source->weight(weight.index), grads[0].contiguous(),
                                    eps, weight.grad()),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct EmbedFunction : torch::autograd::Function<EmbedFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& /*anchor*/,
                            const at::Tensor& ids, const Backend* backend, Weight weight,
                            int64_t padding) {
    context->save_for_backward({ids});
    keep(context, "backend", backend);
    keep(context, "weight", weight);
    context->saved_data["padding"] = padding;
    return backend->embed(ids, weight.source->weight(weight.index));
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const Weight weight = kept<Weight>(context, "weight");
    const at::Tensor ids = context->get_saved_variables()[0];
    kept<const Backend*>(context, "backend")
        ->embed_backward(ids, context->saved_data["padding"].toInt(), grads[0].contiguous(),
                         weight.grad());
    return {at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const Backend& backend, const at::Tensor& x, Weight weight, float eps) {
  return RmsNormFunction::apply(x, &backend, weight, static_cast<double>(eps));
}

at::Tensor embed(const Backend& backend, const at::Tensor& anchor, const at::Tensor& ids,
                 Weight weight, int64_t padding) {
  return EmbedFunction::apply(anchor, ids, &backend, weight, padding);
}

}  // namespace nibble::ops
