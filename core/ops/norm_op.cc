#include "core/kernels/norm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include "core/base/fail.h"
#include "core/kernels/activation.h"
#include "core/ops/tape_saved.h"
#include "core/ops/torch_parallel.h"

namespace nibble::ops {
namespace {

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static kernels::NormShape shape_of(const at::Tensor& x, const kernels::WeightView& w, float eps) {
    NIBBLE_CHECK(
        w.format == kernels::WeightFormat::kBf16 && x.is_contiguous() && x.numel() % w.cols == 0,
        "rms_norm: {} elements in rows of {}", x.numel(), w.cols);
    return {x.numel() / w.cols, w.cols, eps};
  }

  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Weight weight,
                            double eps) {
    const kernels::WeightView w = weight.source->weight(weight.index);
    at::Tensor y = at::empty_like(x);
    kernels::rms_norm(x.const_data_ptr<float>(), w.bf16(), shape_of(x, w, static_cast<float>(eps)),
                      y.data_ptr<float>(), torch_parallel());
    context->save_for_backward({x});
    keep(context, "weight", weight);
    context->saved_data["eps"] = eps;
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const Weight weight = kept<Weight>(context, "weight");
    const kernels::WeightView w = weight.source->weight(weight.index);
    const at::Tensor x = context->get_saved_variables()[0];
    const at::Tensor dy = grads[0].contiguous();
    at::Tensor dx = at::empty_like(x);
    at::Tensor unwanted;
    float* dweight = weight.source->grad(weight.index);
    if (dweight == nullptr) {
      unwanted = at::zeros({w.cols}, x.options());
      dweight = unwanted.data_ptr<float>();
    }
    const auto shape = shape_of(x, w, static_cast<float>(context->saved_data["eps"].toDouble()));
    kernels::rms_norm_backward(x.const_data_ptr<float>(), w.bf16(), dy.const_data_ptr<float>(),
                               shape, dx.data_ptr<float>(), dweight, torch_parallel());
    return {dx, at::Tensor(), at::Tensor()};
  }
};

struct EmbedFunction : torch::autograd::Function<EmbedFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& anchor,
                            const at::Tensor& ids, Weight weight) {
    const kernels::WeightView w = weight.source->weight(weight.index);
    at::Tensor out = at::empty({ids.size(0), w.cols}, anchor.options());
    kernels::embed(ids.const_data_ptr<int32_t>(), ids.size(0), w.bf16(), w.cols,
                   out.data_ptr<float>(), torch_parallel());
    context->save_for_backward({ids});
    keep(context, "weight", weight);
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const Weight weight = kept<Weight>(context, "weight");
    const at::Tensor ids = context->get_saved_variables()[0];
    const at::Tensor dout = grads[0].contiguous();
    if (float* grad = weight.source->grad(weight.index)) {
      kernels::embed_backward(ids.const_data_ptr<int32_t>(), ids.size(0),
                              dout.const_data_ptr<float>(), dout.size(1), grad, torch_parallel());
    }
    return {at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

template <bool kEnter>
struct LayerEdgeFunction : torch::autograd::Function<LayerEdgeFunction<kEnter>> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, WeightSource* source,
                            int64_t layer) {
    if (kEnter) {
      source->enter_layer(layer, Pass::kForward);
    } else {
      source->leave_layer(layer, Pass::kForward);
    }
    keep(context, "source", source);
    context->saved_data["layer"] = layer;
    return x.view_as(x);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    WeightSource* source = kept<WeightSource*>(context, "source");
    const int64_t layer = context->saved_data["layer"].toInt();
    if (kEnter) {
      source->leave_layer(layer, Pass::kBackward);
    } else {
      source->enter_layer(layer, Pass::kBackward);
    }
    return {grads[0], at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, Weight weight, float eps) {
  return RmsNormFunction::apply(x, weight, static_cast<double>(eps));
}

at::Tensor embed(const at::Tensor& anchor, const at::Tensor& ids, Weight weight) {
  return EmbedFunction::apply(anchor, ids, weight);
}

at::Tensor enter_layer(const at::Tensor& x, WeightSource& source, int64_t layer) {
  return LayerEdgeFunction<true>::apply(x, &source, layer);
}

at::Tensor leave_layer(const at::Tensor& x, WeightSource& source, int64_t layer) {
  return LayerEdgeFunction<false>::apply(x, &source, layer);
}

}  // namespace nibble::ops
