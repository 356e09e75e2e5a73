#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/models/activation_type.h"
#include "core/models/decoder.h"
#include "core/models/packing.h"
#include "core/models/recompute.h"
#include "core/ops/rank_ops.h"
#include "core/ops/tape_ops.h"

namespace nibble {

/// Inputs of one pass.
struct TapeInputs {
  const PackedBatch& batch;
  std::vector<at::Tensor> replay = {};     ///< R3: int32 [T, k] per MoE layer, or empty
  const ops::Backend* backend = nullptr;   ///< null: the CPU's
  ops::RankGroups groups = {};             ///< ranks that compute this pass together
  bool wants_routes = true;                ///< false: TapeResult::routes stays empty
  at::Tensor joined = {};                  ///< ArenaStep::joined, float32 [T, hidden], or undefined
  Recompute recompute = Recompute::kNone;  ///< of passes under gradients
  /// Set by run_log_probs(): what of all keys this rank's tokens have, where ranks share them.
  std::optional<ops::RowPart> keys = {};
};

/// Runs a decoder under autograd over packed sequences (run_decoder). Source, rope table and replay
/// are on the backend's device. One thread, one pass each.
///
/// Tensor ranks hold the same batch and the same residual stream. Each multiplies with its rows of
/// attention's and the MLP's matrices, and takes its part of the tokens through the experts and of
/// the targets through the head. Nothing is summed over ranks in the forward pass, so that its bits
/// do not depend on their number. In the backward pass, what a norm of the residual stream gives to
/// a block gets a summand of its gradient on each rank; the stream's own gradient is whole on all,
/// and one of them counts it.
///
/// Context ranks have some of the tokens each (ContextShare) and all keys and values in attention,
/// whose gradients they sum; so bits do not depend on their number either.
class TapeExecutor {
 public:
  using Value = at::Tensor;
  using Routing = ops::Routing;

  TapeExecutor(const ModelSpec& spec, ops::WeightSource& source,
               std::shared_ptr<const kernels::RopeTable> rope, const TapeInputs& inputs,
               ActivationType activations = ActivationType::kFloat32);

  Value embed(int64_t parameter);
  Value join_hidden(const Value& embedded, const HiddenJoin& join);
  void enter_layer(int64_t layer, Value& residual);
  void leave_layer(int64_t layer, Value& residual);
  Value rms_norm(const Value& x, int64_t parameter);
  template <size_t n>
  std::array<Value, n> linears(const Value& x, const std::array<int64_t, n>& parameters) {
    std::array<Value, n> y;
    for (size_t i = 0; i < n; ++i) y[i] = linear(x, parameters[i]);
    return y;
  }
  Value linear(const Value& x, int64_t parameter);
  Value router_logits(const Value& x, int64_t parameter);
  Value rope(const Value& x);
  Value attention(int64_t layer, const Value& q, const Value& k, const Value& v);
  Value silu_mul(const Value& gate, const Value& up);
  Value add(const Value& a, const Value& b);
  Routing route(int64_t layer, const Value& logits);
  Value experts(const Value& x, const Routing& routing, int64_t first_expert);
  Value own_tokens(const Value& x) const;
  Value all_tokens(const Value& x) const;

  /// Chosen experts of each MoE layer, int32 [T, k], in layer order.
  const std::vector<at::Tensor>& routes() const { return routes_; }

  /// run_decoder(), with layers computed again in the backward pass if `run` is to (kFull). `run`
  /// is then kept by the tape, for which its source and spec must live on.
  static Value hidden_states(const std::shared_ptr<TapeExecutor>& run);

 private:
  // Runs a layer that is computed again; its tokens go to the same experts then.
  static void run_twice(const std::shared_ptr<TapeExecutor>& run, int64_t layer, Value& residual);
  // Gives up the memory of `value` until the layer's backward pass, if the pass is to do so.
  // `recipe` computes it before rounding; it must not need this executor.
  void drop(const Value& value, ops::DroppedValues::Recipe recipe);
  // Which of the model's MoE layers it is.
  size_t moe_index(int64_t layer) const;
  // What an operation's result becomes.
  struct Rounding {
    bool to_bf16 = false;
    Value operator()(Value value) const;
  };
  Value rounded(Value value) const { return rounding_(std::move(value)); }
  // x w'^T, and what an adapter adds to it; no rows are gathered.
  Value project(const Value& x, int64_t parameter);
  ops::Weight stream_weight(int64_t parameter) const;
  int num_tensor_ranks() const { return groups().tensor == nullptr ? 1 : groups().tensor->world(); }
  const ops::RankGroups& groups() const { return inputs_.groups; }

  const ModelSpec& spec_;
  ops::WeightSource& source_;
  std::shared_ptr<const kernels::RopeTable> rope_;
  const TapeInputs inputs_;  // its batch is borrowed, and gone when a layer is computed again
  const int64_t num_tokens_;
  const ops::Backend& backend_;
  ops::SharedPlacedIndex index_;
  const Rounding rounding_;
  const Recompute recompute_;
  std::vector<at::Tensor> routes_;
  ops::SharedDroppedValues dropped_;  // of the layer that is being computed; null: none are
  // Of layers that are to be computed again, by MoE layer: this rank's tokens' experts.
  std::vector<at::Tensor> chosen_;
  ops::Pass pass_ = ops::Pass::kForward;
};

/// Log-probabilities of a packed batch's targets, and the chosen experts. Every rank of a pass gets
/// all of them.
struct TapeResult {
  at::Tensor log_prob;  ///< float32 [N] on the backend's device, differentiable if enabled
  at::Tensor entropy;   ///< float32 [N]
  std::vector<at::Tensor> routes;
};
TapeResult run_log_probs(const ModelSpec& spec, ops::WeightSource& source,
                         std::shared_ptr<const kernels::RopeTable> rope, const TapeInputs& inputs,
                         float temperature, ActivationType activations);

/// Values that a critic (ModelConfig::gives_values) gives the tokens of a packed batch: float32
/// [T], by row, on the backend's device, differentiable if enabled. The value before target i is
/// that of row target_row[i], whose hidden state predicts it. Each tensor rank takes its part of
/// the rows through the head.
at::Tensor run_values(const ModelSpec& spec, ops::WeightSource& source,
                      std::shared_ptr<const kernels::RopeTable> rope, const TapeInputs& inputs);

}  // namespace nibble
