#include "core/kernels/linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include "core/base/fail.h"
#include "core/ops/tape_saved.h"
#include "core/ops/torch_parallel.h"
#include "core/tensor/check.h"

namespace nibble::ops {
namespace {

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Weight weight) {
    const kernels::WeightView w = weight.source->weight(weight.index);
    check_matrix(x, w.cols, "linear input");
    at::Tensor y = at::empty({x.size(0), w.rows}, x.options());
    kernels::linear(x.const_data_ptr<float>(), w, x.size(0), y.data_ptr<float>(), w.rows,
                    torch_parallel());
    context->save_for_backward({x});
    keep(context, "weight", weight);
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const Weight weight = kept<Weight>(context, "weight");
    const at::Tensor x = context->get_saved_variables()[0];
    const at::Tensor dy = grads[0].contiguous();
    return {linear_backward(x, dy, weight), at::Tensor()};
  }
};

}  // namespace

at::Tensor linear_backward(const at::Tensor& x, const at::Tensor& dy, Weight weight) {
  const kernels::WeightView w = weight.source->weight(weight.index);
  if (float* grad = weight.source->grad(weight.index)) {
    matrix_view(grad, w.rows, w.cols).addmm_(dy.t(), x);
  }
  // The panel lives for this product only: dX = dY w'.
  at::Tensor panel = at::empty({w.rows, w.cols}, x.options());
  kernels::dequantize(w, panel.data_ptr<float>(), torch_parallel());
  return at::mm(dy, panel);
}

at::Tensor linear(const at::Tensor& x, Weight weight) { return LinearFunction::apply(x, weight); }

}  // namespace nibble::ops
