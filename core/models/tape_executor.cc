#include "core/models/tape_executor.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <optional>

#include "core/base/fail.h"
#include "core/kernels/activation.h"
#include "core/ops/cpu_backend.h"
#include "core/ops/torch_parallel.h"

namespace nibble {
namespace {

template <typename T>
at::Tensor to_tensor(const std::vector<T>& values, at::ScalarType type) {
  return at::from_blob(const_cast<T*>(values.data()), {static_cast<int64_t>(values.size())},
                       at::TensorOptions().dtype(type))
      .clone();
}

}  // namespace

TapeExecutor::TapeExecutor(const ModelSpec& spec, ops::WeightSource& source,
                           std::shared_ptr<const kernels::RopeTable> rope, const TapeInputs& inputs,
                           ActivationType activations)
    : spec_(spec),
      source_(source),
      rope_(std::move(rope)),
      inputs_(inputs),
      backend_(inputs.backend != nullptr ? *inputs.backend : ops::cpu_backend()),
      index_(backend_.place(inputs.batch.index)),
      activations_(activations) {
  for (const int32_t position : inputs.batch.index->position) {
    if (position >= rope_->num_positions) {
      fail(ErrorCode::kInvalidArgument, "a sequence reaches position {}; at most {} are allowed",
           position, rope_->num_positions);
    }
  }
  for (const int32_t id : inputs.batch.tokens) {
    if (id < 0 || id >= spec.config.vocab) {
      fail(ErrorCode::kInvalidArgument, "token id {} is outside the vocabulary of {}", id,
           spec.config.vocab);
    }
  }
}

TapeExecutor::Value TapeExecutor::rounded(Value value) const {
  if (activations_ == ActivationType::kBfloat16 && backend_.kind() == DeviceKind::kCpu) {
    kernels::round_to_bf16(value.data_ptr<float>(), value.numel(), ops::torch_parallel());
  }
  return value;
}

TapeExecutor::Value TapeExecutor::embed(int64_t parameter) {
  const at::Tensor anchor = at::zeros({1}, backend_.options()).set_requires_grad(true);
  const at::Tensor ids = to_tensor(inputs_.batch.tokens, at::kInt).to(backend_.options().device());
  return ops::embed(backend_, anchor, ids, stream_weight(parameter), spec_.config.pad_token);
}

// The states are a constant, but only what needs a gradient passes one on to its norm's weights.
TapeExecutor::Value TapeExecutor::join_hidden(const Value& embedded, const HiddenJoin& join) {
  NIBBLE_CHECK(inputs_.joined.defined() && inputs_.joined.sizes() == embedded.sizes(),
               "a draft head needs a hidden state for each of its tokens");
  NIBBLE_CHECK(groups().tensor == nullptr, "a draft head is not split over ranks");
  const at::Tensor given = inputs_.joined.detach().clone().set_requires_grad(true);
  const at::Tensor both =
      at::cat({rms_norm(embedded, join.embedding_norm), rms_norm(given, join.hidden_norm)}, -1);
  return linear(both, join.projection);
}

// A weight that all tensor ranks apply to the whole residual stream.
ops::Weight TapeExecutor::stream_weight(int64_t parameter) const {
  return {&source_, parameter, groups().tensor == nullptr || groups().tensor->rank() == 0};
}

void TapeExecutor::enter_layer(int64_t layer, Value& residual) {
  residual = ops::enter_layer(residual, source_, layer);
}

void TapeExecutor::leave_layer(int64_t layer, Value& residual) {
  residual = ops::leave_layer(residual, source_, layer);
}

TapeExecutor::Value TapeExecutor::rms_norm(const Value& x, int64_t parameter) {
  const bool is_head_norm = spec_.table.is_head_norm(parameter);
  const ops::Weight weight =
      is_head_norm ? ops::Weight{&source_, parameter} : stream_weight(parameter);
  const Value y = rounded(ops::rms_norm(backend_, x, weight, spec_.config.rms_eps));
  return groups().tensor == nullptr || is_head_norm ? y : ops::sum_gradients(y, *groups().tensor);
}

TapeExecutor::Value TapeExecutor::linear(const Value& x, int64_t parameter) {
  if (groups().tensor == nullptr || !spec_.table.is_output_projection(parameter)) {
    return rounded(ops::linear(backend_, x, {&source_, parameter}));
  }
  const Value all = ops::gather_columns(x, *groups().tensor, ops::RankGradient::kPartial);
  const Value rows = rounded(ops::linear(backend_, all, {&source_, parameter}));
  return ops::gather_columns(rows, *groups().tensor, ops::RankGradient::kSame);
}

TapeExecutor::Value TapeExecutor::router_logits(const Value& x, int64_t parameter) {
  return rounded(ops::linear_float(backend_, x, {&source_, parameter}));
}

TapeExecutor::Value TapeExecutor::rope(const Value& x) {
  return rounded(ops::rope(backend_, x, index_, rope_));
}

TapeExecutor::Value TapeExecutor::attention(int64_t /*layer*/, const Value& q, const Value& k,
                                            const Value& v) {
  const ModelConfig& config = spec_.config;
  const kernels::AttentionShape shape{q.size(0), config.num_heads / num_tensor_ranks(),
                                      config.num_kv_heads / num_tensor_ranks(), config.head_dim,
                                      1.0f / std::sqrt(static_cast<float>(config.head_dim))};
  return rounded(ops::attention(backend_, q, k, v, index_, shape));
}

TapeExecutor::Value TapeExecutor::silu_mul(const Value& gate, const Value& up) {
  return rounded(ops::silu_mul(backend_, gate, up));
}

TapeExecutor::Value TapeExecutor::add(const Value& a, const Value& b) { return rounded(a.add(b)); }

TapeExecutor::Routing TapeExecutor::route(int64_t /*layer*/, const Value& logits) {
  const MoeConfig& moe = spec_.config.moe;
  at::Tensor replay = inputs_.replay.empty() ? at::Tensor() : inputs_.replay[next_moe_layer_++];
  if (replay.defined()) replay = own_tokens(replay);
  Routing routing = ops::route(backend_, logits, replay,
                               {logits.size(0), moe.num_experts, moe.top_k, moe.norm_topk_prob});
  if (inputs_.wants_routes) routes_.push_back(all_tokens(routing.expert));
  return routing;
}

TapeExecutor::Value TapeExecutor::experts(const Value& x, const Routing& routing,
                                          int64_t first_expert) {
  const int64_t experts = spec_.config.moe.num_experts;
  ProcessGroup* const ranks = groups().expert;
  const int64_t held = ranks == nullptr ? experts : experts / ranks->world();
  const int64_t begin = ranks == nullptr ? 0 : held * ranks->rank();
  return rounded(
      ops::experts(backend_, x, routing, {{&source_, first_expert}, experts, begin, held}, ranks));
}

TapeExecutor::Value TapeExecutor::own_tokens(const Value& x) const {
  if (groups().tensor == nullptr) return x;
  const ops::RowPart part = ops::row_part(x.size(0), *groups().tensor);
  return x.narrow(0, part.begin(), part.rows()).contiguous();
}

TapeExecutor::Value TapeExecutor::all_tokens(const Value& x) const {
  if (groups().tensor == nullptr) return x;
  const auto tokens = static_cast<int64_t>(inputs_.batch.tokens.size());
  return ops::gather_rows(x, ops::row_part(tokens, *groups().tensor), *groups().tensor);
}

TapeResult run_log_probs(const ModelSpec& spec, ops::WeightSource& source,
                         std::shared_ptr<const kernels::RopeTable> rope, const TapeInputs& inputs,
                         float temperature, ActivationType activations) {
  TapeExecutor run(spec, source, std::move(rope), inputs, activations);
  const ops::Backend& backend = inputs.backend != nullptr ? *inputs.backend : ops::cpu_backend();
  const at::Device device = backend.options().device();
  const at::Tensor hidden = run_decoder(run, spec);
  at::Tensor row = to_tensor(inputs.batch.target_row, at::kLong);
  at::Tensor target = to_tensor(inputs.batch.target, at::kInt);
  ProcessGroup* const ranks = inputs.groups.tensor;
  std::optional<ops::RowPart> part;
  if (ranks != nullptr) {
    part = ops::row_part(row.size(0), *ranks);
    row = row.narrow(0, part->begin(), part->rows());
    target = target.narrow(0, part->begin(), part->rows());
  }
  auto scored = ops::token_log_probs(backend, hidden, {&source, spec.table.lm_head},
                                     {row.to(device), target.to(device), temperature});
  if (part) {
    scored.log_prob = ops::gather_rows(scored.log_prob, *part, *ranks);
    scored.entropy = ops::gather_rows(scored.entropy, *part, *ranks);
  }
  return {scored.log_prob, scored.entropy, run.routes()};
}

}  // namespace nibble
