#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "core/kernels/attention.h"
#include "core/kernels/rope.h"
#include "core/kernels/router.h"
#include "core/kernels/weight_kernels.h"
#include "core/kernels/weight_view.h"

// A device's arithmetic for the trainer's tape: what core/ops puts under autograd. One
// implementation a device; the autograd functions (tape_ops.h) are written once.

namespace nibble::ops {

/// Where the tokens of a pass sit: their position, and which rows of the packed key array each one
/// may see (kernels::KeyIndex).
struct PackedIndex {
  std::vector<int32_t> position;  ///< [T]
  std::vector<int32_t> rows;
  std::vector<int64_t> first;  ///< [T]
  std::vector<int32_t> count;  ///< [T]
  int64_t other_keys = 0;      ///< rows of the key array if they are not the T tokens' own; else 0
  int64_t num_keys() const { return other_keys > 0 ? other_keys : tokens(); }
  int64_t tokens() const { return static_cast<int64_t>(position.size()); }
  kernels::KeyIndex keys() const { return {rows.data(), first.data(), count.data()}; }
};
using SharedIndex = std::shared_ptr<const PackedIndex>;  // shared: kept by autograd nodes

/// A PackedIndex as a backend wants it, on its device.
struct PlacedIndex {
  virtual ~PlacedIndex() = default;
};
using SharedPlacedIndex = std::shared_ptr<const PlacedIndex>;  // shared: kept by autograd nodes
using SharedRope = std::shared_ptr<const kernels::RopeTable>;  // shared: kept by autograd nodes

/// The experts of one layer: e at first + 3 e + {gate, up, down}. Views and gradient buffers
/// (null: none wanted) come in that order, three an expert.
struct ExpertWeights {
  std::vector<kernels::WeightView> views;
  std::vector<float*> grads;
  int64_t num_experts() const { return static_cast<int64_t>(views.size()) / 3; }
};

/// Activations are contiguous matrices of options().dtype(): float32 on the CPU, BF16 on CUDA.
/// Views and gradient buffers (float32) are on the same device. Shapes: T tokens, C channels.
/// Backward functions add to gradient buffers unless these are null. One thread a process uses a
/// backend for training; work follows the current stream.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual DeviceKind kind() const = 0;
  /// Its device and arithmetic: equal names give equal bits, on a CPU with equal thread counts.
  virtual std::string_view name() const = 0;
  virtual at::TensorOptions options() const = 0;  ///< of activations
  virtual const kernels::WeightKernels& weight_kernels() const = 0;
  virtual SharedPlacedIndex place(const SharedIndex& index) const = 0;
  virtual SharedRope place(const SharedRope& host_table) const = 0;

  /// Embedding rows of ids (int32 [T]) -> [T, C].
  virtual at::Tensor embed(const at::Tensor& ids, const kernels::WeightView& table) const = 0;
  /// dtable[ids[t]] += dout[t] in token order, except for `padding`.
  virtual void embed_backward(const at::Tensor& ids, int64_t padding, const at::Tensor& dout,
                              float* dtable) const = 0;

  virtual at::Tensor rms_norm(const at::Tensor& x, const kernels::WeightView& w,
                              float eps) const = 0;
  virtual at::Tensor rms_norm_backward(const at::Tensor& x, const kernels::WeightView& w,
                                       const at::Tensor& dy, float eps, float* dweight) const = 0;

  /// x w'^T.
  virtual at::Tensor linear(const at::Tensor& x, const kernels::WeightView& w) const = 0;
  /// The same in float32, whatever activations are: router logits.
  virtual at::Tensor linear_float(const at::Tensor& x, const kernels::WeightView& w) const = 0;
  /// dX; dY^T X is added to dweight. `dy` may be float32 (linear_float's).
  virtual at::Tensor linear_backward(const at::Tensor& x, const at::Tensor& dy,
                                     const kernels::WeightView& w, float* dweight) const = 0;

  /// gram += x^T x, float32 [C, C] on the device; right on and above its diagonal only.
  virtual void add_gram(const at::Tensor& x, at::Tensor& gram) const = 0;

  virtual at::Tensor rope(const at::Tensor& x, const PlacedIndex& index,
                          const kernels::RopeTable& table,
                          kernels::RopeDirection direction) const = 0;

  struct Attention {
    at::Tensor out;
    at::Tensor lse;  ///< float32, in the backend's own layout
  };
  virtual Attention attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const PlacedIndex& index,
                              const kernels::AttentionShape& shape) const = 0;
  struct AttentionInputs {
    at::Tensor q, k, v;
  };
  virtual AttentionInputs attention_backward(const AttentionInputs& in, const Attention& result,
                                             const at::Tensor& dout, const PlacedIndex& index,
                                             const kernels::AttentionShape& shape) const = 0;

  virtual at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up) const = 0;
  struct GateGradients {
    at::Tensor gate, up;
  };
  virtual GateGradients silu_mul_backward(const at::Tensor& gate, const at::Tensor& up,
                                          const at::Tensor& dout) const = 0;

  struct Route {
    at::Tensor prob;    ///< float32 [T, E]
    at::Tensor expert;  ///< int32 [T, k]
    at::Tensor weight;  ///< float32 [T, k]
  };
  /// Softmax top-k of float32 logits; `replay` (int32 [T, k]) replaces the choice if defined.
  virtual Route route(const at::Tensor& logits, const at::Tensor& replay,
                      const kernels::RouterShape& shape) const = 0;
  virtual at::Tensor route_backward(const Route& route, const at::Tensor& dweight,
                                    const kernels::RouterShape& shape) const = 0;

  /// (token, slot) pairs sorted by expert, stable in token order; a pair is token * k + slot.
  struct PairOrder {
    at::Tensor begin;  ///< int32 [E + 1]: expert e has places [begin[e], begin[e + 1])
    at::Tensor pair;   ///< int32 [T * k], by place
    at::Tensor place;  ///< int32 [T * k], by pair: the inverse
  };
  ///   expert  int32 [T, k], each in [0, num_experts)
  virtual PairOrder order_pairs(const at::Tensor& expert, int64_t num_experts) const = 0;
  /// x[token of each place]: [T, C] -> [T * k, C]. `scale` (float32 [T, k], or undefined: ones)
  /// multiplies each by its pair's, rounded once.
  virtual at::Tensor gather_pairs(const at::Tensor& x, const PairOrder& order, int64_t top_k,
                                  const at::Tensor& scale) const = 0;
  /// y[t] = sum over slots, in their order, of weight[t, s] * part[place of (t, s)]. `weight`
  /// (float32 [T, k]) may be undefined: ones.
  virtual at::Tensor combine_pairs(const at::Tensor& part, const PairOrder& order, int64_t top_k,
                                   const at::Tensor& weight) const = 0;
  /// part[place of (t, s)] . dy[t], float32 [T, k]: the gradient of combine_pairs' weights.
  virtual at::Tensor pair_dots(const at::Tensor& part, const PairOrder& order, int64_t top_k,
                               const at::Tensor& dy) const = 0;

  /// SwiGLU of each expert over its rows of x: rows [begin[e], begin[e + 1]) are expert e's.
  struct GroupedMlp {
    at::Tensor y;
    at::Tensor gate, up, active;  ///< for the backward pass
  };
  virtual GroupedMlp grouped_mlp(const at::Tensor& x, const at::Tensor& begin,
                                 const ExpertWeights& weights) const = 0;
  /// dL/dx; gradients of the experts' matrices are added to theirs.
  virtual at::Tensor grouped_mlp_backward(const at::Tensor& x, const GroupedMlp& result,
                                          const at::Tensor& dy, const at::Tensor& begin,
                                          const ExpertWeights& weights) const = 0;

  /// log p(target[i]) after hidden[row[i]] at a temperature. Logits exist for a chunk of rows at a
  /// time.
  struct Targets {
    at::Tensor row;     ///< int64 [N]
    at::Tensor target;  ///< int32 [N]
    float temperature = 1.0f;
  };
  struct LogProbs {
    at::Tensor log_prob;  ///< float32 [N]
    at::Tensor entropy;   ///< float32 [N]
    at::Tensor stats;     ///< float32 [N, 3]: kernels::RowStats
  };
  virtual LogProbs log_probs(const at::Tensor& hidden, const kernels::WeightView& head,
                             const Targets& targets) const = 0;
  /// Gradients of what log_probs() gave, float32 [N]; an undefined entropy: 0.
  struct LogProbGrads {
    at::Tensor log_prob;
    at::Tensor entropy;
  };
  virtual at::Tensor log_probs_backward(const at::Tensor& hidden, const kernels::WeightView& head,
                                        const Targets& targets, const at::Tensor& stats,
                                        const LogProbGrads& grads, float* dhead) const = 0;
};

}  // namespace nibble::ops
