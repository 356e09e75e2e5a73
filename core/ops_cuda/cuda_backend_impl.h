#pragma once

// The class behind make_cuda_backend(), in several files. Included by core/ops_cuda/*.cc only.

#include <c10/cuda/CUDAStream.h>

#include "core/device/cuda_backend.h"
#include "core/kernels_cuda/runs.h"
#include "core/kernels_cuda/weight_kernels.h"

namespace nibble::ops {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(Numerics numerics);
  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string_view name() const override { return "cuda"; }
  at::TensorOptions options() const override;
  const kernels::WeightKernels& weight_kernels() const override { return weight_kernels_; }
  SharedPlacedIndex place(const SharedIndex& index) const override;
  SharedRope place(const SharedRope& host_table) const override;
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
  // Products of sorted rows with the experts' matrices `which` (0 gate, 1 up, 2 down).
  at::Tensor grouped(const at::Tensor& x, const ExpertWeights& weights, int which,
                     const at::Tensor& begin) const;

  const Numerics numerics_;
  const kernels::cuda::CudaWeightKernels weight_kernels_;
};

/// Places of an index by value, on the GPU; keeps the memory that runs() points to.
struct IndexRuns {
  at::Tensor places;  // int64 [n]
  at::Tensor begin;   // int32 [num_values + 1]
  kernels::cuda::Runs runs() const;
};
///   index  CUDA integers [n], each in [0, num_values)
IndexRuns make_runs(const at::Tensor& index, int64_t num_values);

/// A PackedIndex on the GPU. Tokens that share a list of keys form a segment: flash attention's
/// sequences. Their keys lie one after another in `rows`.
struct CudaIndex final : PlacedIndex {
  at::Tensor position;      // int32 [T]
  at::Tensor rows;          // int32 [K]
  at::Tensor wide_rows;     // the same as int64
  at::Tensor first, count;  // int64 [T], int32 [T]
  at::Tensor cum_q, cum_k;  // int32 [segments + 1]
  int64_t max_q = 0, max_k = 0;
  // Some row is a key of several segments or of none; otherwise rows are 0, 1, ... of the tokens.
  bool is_shared = false;
  IndexRuns row_runs;  // of rows, if shared
};

inline uint16_t* bf16_bits(const at::Tensor& tensor) {
  return reinterpret_cast<uint16_t*>(tensor.mutable_data_ptr<at::BFloat16>());
}
inline const uint16_t* const_bf16_bits(const at::Tensor& tensor) {
  return reinterpret_cast<const uint16_t*>(tensor.const_data_ptr<at::BFloat16>());
}
inline cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream(); }

}  // namespace nibble::ops
