#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>

#include <optional>

#include "core/kernels_cuda/attention.h"
#include "core/ops_cuda/cuda_backend_impl.h"

namespace nibble::ops {
namespace {

at::Tensor heads_of(const at::Tensor& x, int64_t heads, int64_t head_dim) {
  return x.view({x.size(0), heads, head_dim});
}

// Keys or values as flash attention wants them: every segment's rows one after another.
at::Tensor spread(const at::Tensor& x, const CudaIndex& index) {
  return index.is_shared ? x.index_select(0, index.wide_rows) : x;
}

// Flash attention adds up dQ in the order in which blocks end, unless it is told not to; so `exact`
// runs of the same seed would part from each other. The switch is the process's, and on only for
// the call: cuBLAS refuses to work while it is. A trainer and an engine of one process take turns.
class InOneOrder {
 public:
  InOneOrder()
      : was_on_(context().deterministicAlgorithms()),
        filled_(context().deterministicFillUninitializedMemory()) {
    // Outputs are written whole: filling them before would cost as much again. With warn_only flash
    // attention would warn, and go on as before.
    context().setDeterministicFillUninitializedMemory(false);
    context().setDeterministicAlgorithms(true, /*warn_only=*/false);
  }
  ~InOneOrder() {
    context().setDeterministicAlgorithms(was_on_, /*warn_only=*/false);
    context().setDeterministicFillUninitializedMemory(filled_);
  }
  InOneOrder(const InOneOrder&) = delete;
  InOneOrder& operator=(const InOneOrder&) = delete;

 private:
  static at::Context& context() { return at::globalContext(); }
  const bool was_on_;
  const bool filled_;
};

// The adjoint: gradients of a row that several segments see are summed.
at::Tensor collect(const at::Tensor& dx, const CudaIndex& index, const at::Tensor& like) {
  const at::Tensor flat = dx.reshape({dx.size(0), like.size(1)});
  if (!index.is_shared) return flat;
  at::Tensor out = at::empty_like(like);
  kernels::cuda::sum_runs(const_bf16_bits(flat), index.row_runs.runs(), like.size(1),
                          bf16_bits(out), current_stream());
  return out;
}

}  // namespace

Backend::Attention CudaBackend::attention(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& v, const PlacedIndex& placed,
                                          const kernels::AttentionShape& shape) const {
  const auto& index = static_cast<const CudaIndex&>(placed);
  if (numerics_ == Numerics::kFast) {
    const auto [out, lse, rng, unused, mask] = at::_flash_attention_forward(
        heads_of(q, shape.heads, shape.head_dim),
        heads_of(spread(k, index), shape.kv_heads, shape.head_dim),
        heads_of(spread(v, index), shape.kv_heads, shape.head_dim), index.cum_q, index.cum_k,
        index.max_q, index.max_k, /*dropout_p=*/0.0, /*is_causal=*/true,
        /*return_debug_mask=*/false, static_cast<double>(shape.scale));
    return {out.reshape({q.size(0), q.size(1)}), lse};
  }
  Attention result{at::empty_like(q),
                   at::empty({shape.heads, q.size(0)}, q.options().dtype(at::kFloat))};
  const kernels::KeyIndex keys{index.rows.const_data_ptr<int32_t>(),
                               index.first.const_data_ptr<int64_t>(),
                               index.count.const_data_ptr<int32_t>()};
  kernels::cuda::attention(const_bf16_bits(q), const_bf16_bits(k), const_bf16_bits(v), keys, shape,
                           bf16_bits(result.out), result.lse.data_ptr<float>(), current_stream());
  return result;
}

Backend::AttentionInputs CudaBackend::attention_backward(
    const AttentionInputs& in, const Attention& result, const at::Tensor& dout,
    const PlacedIndex& placed, const kernels::AttentionShape& shape) const {
  const auto& index = static_cast<const CudaIndex&>(placed);
  // State of a dropout that does not happen.
  const at::Tensor rng = at::zeros({2}, in.q.options().dtype(at::kUInt64));
  const at::Tensor unused = at::empty({0}, in.q.options().dtype(at::kUInt64));
  std::optional<InOneOrder> in_one_order;
  if (numerics_ == Numerics::kExact) in_one_order.emplace();
  const auto [dq, dk, dv] = at::_flash_attention_backward(
      heads_of(dout, shape.heads, shape.head_dim), heads_of(in.q, shape.heads, shape.head_dim),
      heads_of(spread(in.k, index), shape.kv_heads, shape.head_dim),
      heads_of(spread(in.v, index), shape.kv_heads, shape.head_dim),
      heads_of(result.out, shape.heads, shape.head_dim), result.lse, index.cum_q, index.cum_k,
      index.max_q, index.max_k, /*dropout_p=*/0.0, /*is_causal=*/true, rng, unused,
      static_cast<double>(shape.scale));
  return {dq.reshape({in.q.size(0), in.q.size(1)}), collect(dk, index, in.k),
          collect(dv, index, in.v)};
}

}  // namespace nibble::ops
