#pragma once

#include "core/ops/backend.h"

namespace nibble::ops {

/// Kernels of core/kernels on torch's threads, float32 activations.
class CpuBackend : public Backend {
 public:
  CpuBackend();
  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::string_view name() const override { return "cpu"; }
  at::TensorOptions options() const override;
  const kernels::WeightKernels& weight_kernels() const override { return weight_kernels_; }
  SharedPlacedIndex place(const SharedIndex& index) const override;
  SharedRope place(const SharedRope& host_table) const override { return host_table; }
  at::Tensor embed(const at::Tensor& ids, const kernels::WeightView& table) const override;
  void embed_backward(const at::Tensor& ids, int64_t padding, const at::Tensor& dout,
                      float* dtable) const override;
  at::Tensor rms_norm(const at::Tensor& x, const kernels::WeightView& w, float eps) const override;
  at::Tensor rms_norm_backward(const at::Tensor& x, const kernels::WeightView& w,
                               const at::Tensor& dy, float eps, float* dweight) const override;
  at::Tensor linear(const at::Tensor& x, const kernels::WeightView& w) const override;
  at::Tensor linear_float(const at::Tensor& x, const kernels::WeightView& w) const override;
  at::Tensor linear_backward(const at::Tensor& x, const at::Tensor& dy,
                             const kernels::WeightView& w, float* dweight) const override;
  void add_gram(const at::Tensor& x, at::Tensor& gram) const override;
  at::Tensor rope(const at::Tensor& x, const PlacedIndex& index, const kernels::RopeTable& table,
                  kernels::RopeDirection direction) const override;
  Attention attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const PlacedIndex& index,
                      const kernels::AttentionShape& shape) const override;
  AttentionInputs attention_backward(const AttentionInputs& in, const Attention& result,
                                     const at::Tensor& dout, const PlacedIndex& index,
                                     const kernels::AttentionShape& shape) const override;
  at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up) const override;
  GateGradients silu_mul_backward(const at::Tensor& gate, const at::Tensor& up,
                                  const at::Tensor& dout) const override;
  Route route(const at::Tensor& logits, const at::Tensor& replay,
              const kernels::RouterShape& shape) const override;
  at::Tensor route_backward(const Route& route, const at::Tensor& dweight,
                            const kernels::RouterShape& shape) const override;
  PairOrder order_pairs(const at::Tensor& expert, int64_t num_experts) const override;
  at::Tensor gather_pairs(const at::Tensor& x, const PairOrder& order, int64_t top_k,
                          const at::Tensor& scale) const override;
  at::Tensor combine_pairs(const at::Tensor& part, const PairOrder& order, int64_t top_k,
                           const at::Tensor& weight) const override;
  at::Tensor pair_dots(const at::Tensor& part, const PairOrder& order, int64_t top_k,
                       const at::Tensor& dy) const override;
  GroupedMlp grouped_mlp(const at::Tensor& x, const at::Tensor& begin,
                         const ExpertWeights& weights) const override;
  at::Tensor grouped_mlp_backward(const at::Tensor& x, const GroupedMlp& result,
                                  const at::Tensor& dy, const at::Tensor& begin,
                                  const ExpertWeights& weights) const override;
  LogProbs log_probs(const at::Tensor& hidden, const kernels::WeightView& head,
                     const Targets& targets) const override;
  at::Tensor log_probs_backward(const at::Tensor& hidden, const kernels::WeightView& head,
                                const Targets& targets, const at::Tensor& stats,
                                const LogProbGrads& grads, float* dhead) const override;

 private:
  kernels::CpuWeightKernels weight_kernels_;
};

/// The one instance; it holds no state.
const CpuBackend& cpu_backend();

}  // namespace nibble::ops
