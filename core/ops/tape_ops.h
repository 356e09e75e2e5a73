#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/comm/process_group.h"
#include "core/ops/backend.h"
#include "core/ops/dropped_values.h"
#include "core/ops/weight_source.h"

// The trainer's operations: a backend's arithmetic under autograd. Weights are not autograd leaves:
// an operation saves the source and a parameter index, never a dequantized copy, and its backward
// adds dL/dw' to the source's float32 buffer (the straight-through gradient of fake quantization).
// Activations are the backend's (Backend::options); shapes: T tokens, C channels. A backend must
// outlive the backward pass.

namespace nibble::ops {

using SharedDroppedValues = std::shared_ptr<DroppedValues>;  // shared: kept by an autograd node

/// A parameter of a source. The source must outlive the backward pass.
struct Weight {
  WeightSource* source = nullptr;
  int64_t index = -1;
  bool has_gradient = true;  ///< false: another rank computes the same one and adds it

  float* grad() const { return has_gradient ? source->grad(index) : nullptr; }
};

/// Embedding rows of `ids` (int32 [T]) -> [T, C]. `anchor` is any float tensor; the result needs a
/// gradient if it does (weights are no leaves, so something must start the graph). `padding` (-1:
/// none) is the token whose lookups give its row no gradient, as in Transformers.
at::Tensor embed(const Backend& backend, const at::Tensor& anchor, const at::Tensor& ids,
                 Weight weight, int64_t padding);

/// Marks the residual stream [T, C] on entry to and exit from a layer, in both passes.
at::Tensor enter_layer(const at::Tensor& x, WeightSource& source, int64_t layer);
/// `dropped` (null: nothing) is restored before the layer's backward pass.
at::Tensor leave_layer(const at::Tensor& x, WeightSource& source, int64_t layer,
                       SharedDroppedValues dropped = nullptr);

/// What a layer makes of the residual stream, between entry and exit; the pass says which time it
/// runs.
using LayerBody = std::function<at::Tensor(const at::Tensor& x, Pass pass)>;
/// A layer, entered and left, of which x alone is kept: `body` runs a second time in the backward
/// pass, while the layer's weights are there for it anyway, and must give the same bits.
at::Tensor recomputed_layer(const at::Tensor& x, WeightSource& source, int64_t layer,
                            const LayerBody& body);

/// RMS norm over rows of the weight's width: [T, C] with C a multiple of it.
at::Tensor rms_norm(const Backend& backend, const at::Tensor& x, Weight weight, float eps);

/// x w'^T: [T, in] -> [T, out].
at::Tensor linear(const Backend& backend, const at::Tensor& x, Weight weight);
/// The same with a float32 result: router logits.
at::Tensor linear_float(const Backend& backend, const at::Tensor& x, Weight weight);

/// Rotary embedding of every head of [T, heads * head_dim].
at::Tensor rope(const Backend& backend, const at::Tensor& x, const SharedPlacedIndex& index,
                const SharedRope& table);

/// Causal attention of packed sequences: q [T, heads * dim], k and v [T, kv_heads * dim].
at::Tensor attention(const Backend& backend, const at::Tensor& q, const at::Tensor& k,
                     const at::Tensor& v, const SharedPlacedIndex& index,
                     kernels::AttentionShape shape);

/// silu(gate) * up.
at::Tensor silu_mul(const Backend& backend, const at::Tensor& gate, const at::Tensor& up);

/// Chosen experts (int32 [T, k]) and their weights (float32 [T, k], differentiable).
struct Routing {
  at::Tensor expert;
  at::Tensor weight;
};
/// Softmax top-k of router logits [T, E]. `replay` (int32 [T, k]) replaces the choice if defined.
Routing route(const Backend& backend, const at::Tensor& logits, const at::Tensor& replay,
              kernels::RouterShape shape);

/// A layer's experts: e at first.index + 3 e + {gate, up, down}. Of them this rank holds some.
struct ExpertLayer {
  Weight first;
  int64_t num_experts = 0;
  int64_t held_begin = 0;
  int64_t num_held = 0;
  bool keeps_active = true;  ///< false: the backward pass computes silu(gate) * up again
};
/// Weighted sum of the chosen experts' SwiGLU outputs. Each expert multiplies its tokens only.
/// `ranks` hold the experts together, in rank order (ExpertExchange); null: this one holds all.
at::Tensor experts(const Backend& backend, const at::Tensor& x, const Routing& routing,
                   const ExpertLayer& layer, ProcessGroup* ranks = nullptr);

/// Log-probability of target[i] after hidden[row[i]], and the distribution's entropy.
struct TokenLogProbs {
  at::Tensor log_prob;  ///< float32 [N], differentiable
  at::Tensor entropy;   ///< float32 [N], differentiable
};
TokenLogProbs token_log_probs(const Backend& backend, const at::Tensor& hidden, Weight head,
                              const Backend::Targets& targets);

}  // namespace nibble::ops
