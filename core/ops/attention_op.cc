#include "core/ops/tape_saved.h"

namespace nibble::ops {
namespace {

struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const Backend* backend,
                            SharedPlacedIndex index, SharedRope table) {
    keep(context, "backend", backend);
    keep(context, "index", index);
    keep(context, "table", table);
    return backend->rope(x, *index, *table, kernels::RopeDirection::kForward);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto& index = kept<SharedPlacedIndex>(context, "index");
    const auto& table = kept<SharedRope>(context, "table");
    return {kept<const Backend*>(context, "backend")
                ->rope(grads[0].contiguous(), *index, *table, kernels::RopeDirection::kBackward),
            at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const Backend* backend, SharedPlacedIndex index,
                            kernels::AttentionShape shape) {
    const Backend::Attention result = backend->attention(q, k, v, *index, shape);
    context->save_for_backward({q, k, v, result.out, result.lse});
    keep(context, "backend", backend);
    keep(context, "index", index);
    keep(context, "shape", shape);
    return result.out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto d =
        kept<const Backend*>(context, "backend")
            ->attention_backward({saved[0], saved[1], saved[2]}, {saved[3], saved[4]},
                                 grads[0].contiguous(), *kept<SharedPlacedIndex>(context, "index"),
                                 kept<kernels::AttentionShape>(context, "shape"));
    return {d.q, d.k, d.v, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct SiluMulFunction : torch::autograd::Function<SiluMulFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate, const at::Tensor& up,
                            const Backend* backend) {
    context->save_for_backward({gate, up});
    keep(context, "backend", backend);
    return backend->silu_mul(gate, up);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto d = kept<const Backend*>(context, "backend")
                       ->silu_mul_backward(saved[0], saved[1], grads[0].contiguous());
    return {d.gate, d.up, at::Tensor()};
  }
};

}  // namespace

at::Tensor rope(const Backend& backend, const at::Tensor& x, const SharedPlacedIndex& index,
                const SharedRope& table) {
  return RopeFunction::apply(x, &backend, index, table);
}

at::Tensor attention(const Backend& backend, const at::Tensor& q, const at::Tensor& k,
                     const at::Tensor& v, const SharedPlacedIndex& index,
                     kernels::AttentionShape shape) {
  shape.tokens = q.size(0);
  return AttentionFunction::apply(q, k, v, &backend, index, shape);
}

at::Tensor silu_mul(const Backend& backend, const at::Tensor& gate, const at::Tensor& up) {
  return SiluMulFunction::apply(gate, up, &backend);
}

}  // namespace nibble::ops
