#include "core/kernels/attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "core/base/fail.h"
#include "core/kernels/activation.h"
#include "core/ops/tape_saved.h"
#include "core/ops/torch_parallel.h"
#include "core/tensor/check.h"

namespace nibble::ops {
namespace {

using SharedRope = std::shared_ptr<const kernels::RopeTable>;

struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static at::Tensor turn(const at::Tensor& x, const PackedIndex& index,
                         const kernels::RopeTable& table, kernels::RopeDirection direction) {
    at::Tensor y = x.clone();
    kernels::rope(y.data_ptr<float>(), index.position.data(), x.size(0),
                  x.size(1) / (2 * table.half), table, direction, torch_parallel());
    return y;
  }

  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, SharedIndex index,
                            SharedRope table) {
    keep(context, "index", index);
    keep(context, "table", table);
    return turn(x, *index, *table, kernels::RopeDirection::kForward);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto& index = kept<SharedIndex>(context, "index");
    const auto& table = kept<SharedRope>(context, "table");
    return {turn(grads[0].contiguous(), *index, *table, kernels::RopeDirection::kBackward),
            at::Tensor(), at::Tensor()};
  }
};

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, SharedIndex index, kernels::AttentionShape shape) {
    check_matrix(q, shape.heads * shape.head_dim, "attention q");
    check_matrix(k, shape.kv_heads * shape.head_dim, "attention k");
    check_matrix(v, shape.kv_heads * shape.head_dim, "attention v");
    at::Tensor out = at::empty_like(q);
    at::Tensor lse = at::empty({q.size(0), shape.heads}, q.options());
    kernels::attention(q.const_data_ptr<float>(), k.const_data_ptr<float>(),
                       v.const_data_ptr<float>(), index->keys(), shape, out.data_ptr<float>(),
                       lse.data_ptr<float>(), torch_parallel());
    context->save_for_backward({q, k, v, out, lse});
    keep(context, "index", index);
    keep(context, "shape", shape);
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor dout = grads[0].contiguous();
    at::Tensor dq = at::empty_like(saved[0]);
    at::Tensor dk = at::empty_like(saved[1]);
    at::Tensor dv = at::empty_like(saved[2]);
    const kernels::AttentionGradient gradient{saved[0].const_data_ptr<float>(),
                                              saved[1].const_data_ptr<float>(),
                                              saved[2].const_data_ptr<float>(),
                                              saved[3].const_data_ptr<float>(),
                                              saved[4].const_data_ptr<float>(),
                                              dout.const_data_ptr<float>(),
                                              dq.data_ptr<float>(),
                                              dk.data_ptr<float>(),
                                              dv.data_ptr<float>(),
                                              saved[1].size(0)};
    kernels::attention_backward(gradient, kept<SharedIndex>(context, "index")->keys(),
                                kept<kernels::AttentionShape>(context, "shape"), torch_parallel());
    return {dq, dk, dv, at::Tensor(), at::Tensor()};
  }
};

struct SiluMulFunction : torch::autograd::Function<SiluMulFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate,
                            const at::Tensor& up) {
    at::Tensor out = at::empty_like(gate);
    kernels::silu_mul(gate.const_data_ptr<float>(), up.const_data_ptr<float>(), gate.numel(),
                      out.data_ptr<float>(), torch_parallel());
    context->save_for_backward({gate, up});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor dout = grads[0].contiguous();
    at::Tensor dgate = at::empty_like(saved[0]);
    at::Tensor dup = at::empty_like(saved[1]);
    kernels::silu_mul_backward(saved[0].const_data_ptr<float>(), saved[1].const_data_ptr<float>(),
                               dout.const_data_ptr<float>(), dout.numel(), dgate.data_ptr<float>(),
                               dup.data_ptr<float>(), torch_parallel());
    return {dgate, dup};
  }
};

}  // namespace

at::Tensor rope(const at::Tensor& x, const SharedIndex& index, SharedRope table) {
  return RopeFunction::apply(x, index, std::move(table));
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const SharedIndex& index, kernels::AttentionShape shape) {
  shape.tokens = q.size(0);
  return AttentionFunction::apply(q, k, v, index, shape);
}

at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up) {
  return SiluMulFunction::apply(gate, up);
}

}  // namespace nibble::ops
