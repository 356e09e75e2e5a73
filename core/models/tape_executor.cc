#include "core/models/tape_executor.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "core/base/fail.h"
#include "core/kernels/activation.h"
#include "core/models/context_share.h"
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
      num_tokens_(std::ssize(inputs.batch.tokens)),
      backend_(inputs.backend != nullptr ? *inputs.backend : ops::cpu_backend()),
      index_(backend_.place(inputs.batch.index)),
      rounding_{activations == ActivationType::kBfloat16 && backend_.kind() == DeviceKind::kCpu},
      recompute_(at::GradMode::is_enabled() ? inputs.recompute : Recompute::kNone),
      chosen_(recompute_ == Recompute::kFull ? spec.config.layer_is_moe.size() : 0) {
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

TapeExecutor::Value TapeExecutor::Rounding::operator()(Value value) const {
  if (to_bf16) {
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
  if (recompute_ == Recompute::kSelective) dropped_ = std::make_shared<ops::DroppedValues>();
}

void TapeExecutor::leave_layer(int64_t layer, Value& residual) {
  residual = ops::leave_layer(residual, source_, layer, dropped_);
  if (dropped_) dropped_->drop();
  dropped_.reset();
}

TapeExecutor::Value TapeExecutor::hidden_states(const std::shared_ptr<TapeExecutor>& run) {
  if (run->recompute_ != Recompute::kFull) return run_decoder(*run, run->spec_);
  return run_decoder(*run, run->spec_,
                     [&](int64_t layer, Value& residual) { run_twice(run, layer, residual); });
}

void TapeExecutor::run_twice(const std::shared_ptr<TapeExecutor>& run, int64_t layer,
                             Value& residual) {
  residual = ops::recomputed_layer(residual, run->source_, layer,
                                   [run, layer](const Value& x, ops::Pass pass) {
                                     run->pass_ = pass;
                                     Value y = x;
                                     run_layer_body(*run, run->spec_, layer, y);
                                     return y;
                                   });
}

void TapeExecutor::drop(const Value& value, ops::DroppedValues::Recipe recipe) {
  if (!dropped_) return;
  dropped_->add(value,
                [recipe = std::move(recipe), rounding = rounding_] { return rounding(recipe()); });
}

TapeExecutor::Value TapeExecutor::rms_norm(const Value& x, int64_t parameter) {
  const bool is_head_norm = spec_.table.is_head_norm(parameter);
  const ops::Weight weight =
      is_head_norm ? ops::Weight{&source_, parameter} : stream_weight(parameter);
  const float eps = spec_.config.rms_eps;
  const Value y = rounded(ops::rms_norm(backend_, x, weight, eps));
  drop(y, [backend = &backend_, source = &source_, x = x.detach(), parameter, eps] {
    return backend->rms_norm(x, source->weight(parameter), eps);
  });
  return groups().tensor == nullptr || is_head_norm ? y : ops::sum_gradients(y, *groups().tensor);
}

// Tensor ranks multiply with all of A and their rows of B: each has a summand of A's gradient.
TapeExecutor::Value TapeExecutor::project(const Value& x, int64_t parameter) {
  const auto product = [&](const Value& of, int64_t p) {
    return rounded(ops::linear(backend_, of, {&source_, p}));
  };
  const Value y = product(x, parameter);
  const AdapterParameters adapter = spec_.table.adapter_of(parameter);
  if (!adapter.exists()) return y;
  const float scale = spec_.config.lora->scale();
  Value low = product(x, adapter.a);
  if (scale != 1.0f) low = rounded(low.mul(scale));
  return add(y, product(low, adapter.b));
}

TapeExecutor::Value TapeExecutor::linear(const Value& x, int64_t parameter) {
  if (groups().tensor == nullptr || !spec_.table.is_output_projection(parameter)) {
    return project(x, parameter);
  }
  const Value all = ops::gather_columns(x, *groups().tensor, ops::RankGradient::kPartial);
  const Value rows = project(all, parameter);
  return ops::gather_columns(rows, *groups().tensor, ops::RankGradient::kSame);
}

TapeExecutor::Value TapeExecutor::router_logits(const Value& x, int64_t parameter) {
  return rounded(ops::linear_float(backend_, x, {&source_, parameter}));
}

TapeExecutor::Value TapeExecutor::rope(const Value& x) {
  Value y = rounded(ops::rope(backend_, x, index_, rope_));
  // Without a norm before it, what it is given is kept by nobody else.
  if (spec_.config.qk_norm) {
    drop(y, [backend = &backend_, x = x.detach(), index = index_, table = rope_] {
      return backend->rope(x, *index, *table, kernels::RopeDirection::kForward);
    });
  }
  return y;
}

TapeExecutor::Value TapeExecutor::attention(int64_t /*layer*/, const Value& q, const Value& k,
                                            const Value& v) {
  const ModelConfig& config = spec_.config;
  const kernels::AttentionShape shape{q.size(0), config.num_heads / num_tensor_ranks(),
                                      config.num_kv_heads / num_tensor_ranks(), config.head_dim,
                                      1.0f / std::sqrt(static_cast<float>(config.head_dim))};
  const auto of_all_tokens = [&](const Value& x) {
    if (!inputs_.keys) return x;
    return ops::gather_rows(x, *inputs_.keys, *groups().context, ops::RankGradient::kPartial);
  };
  const Value keys = of_all_tokens(k), values = of_all_tokens(v);
  return rounded(ops::attention(backend_, q, keys, values, index_, shape));
}

TapeExecutor::Value TapeExecutor::silu_mul(const Value& gate, const Value& up) {
  Value y = rounded(ops::silu_mul(backend_, gate, up));
  // Of several ranks' columns, the product that is kept is the one that was gathered.
  if (groups().tensor == nullptr) {
    drop(y, [backend = &backend_, gate = gate.detach(), up = up.detach()] {
      return backend->silu_mul(gate, up);
    });
  }
  return y;
}

TapeExecutor::Value TapeExecutor::add(const Value& a, const Value& b) { return rounded(a.add(b)); }

size_t TapeExecutor::moe_index(int64_t layer) const {
  const auto begin = spec_.config.layer_is_moe.begin();
  return static_cast<size_t>(std::count(begin, begin + layer, true));
}

TapeExecutor::Routing TapeExecutor::route(int64_t layer, const Value& logits) {
  const MoeConfig& moe = spec_.config.moe;
  const size_t index = moe_index(layer);
  const bool is_again = pass_ == ops::Pass::kBackward;
  at::Tensor replay;
  if (is_again) {
    replay = std::exchange(chosen_[index], {});
  } else if (!inputs_.replay.empty()) {
    replay = own_tokens(inputs_.replay[index]);
  }
  Routing routing = ops::route(backend_, logits, replay,
                               {logits.size(0), moe.num_experts, moe.top_k, moe.norm_topk_prob});
  if (is_again) return routing;
  if (!chosen_.empty()) chosen_[index] = routing.expert;
  if (inputs_.wants_routes) routes_.push_back(all_tokens(routing.expert));
  return routing;
}

TapeExecutor::Value TapeExecutor::experts(const Value& x, const Routing& routing,
                                          int64_t first_expert) {
  const int64_t experts = spec_.config.moe.num_experts;
  ProcessGroup* const ranks = groups().expert;
  const int64_t held = ranks == nullptr ? experts : experts / ranks->world();
  const int64_t begin = ranks == nullptr ? 0 : held * ranks->rank();
  const bool keeps_active = recompute_ != Recompute::kSelective;
  return rounded(ops::experts(
      backend_, x, routing, {{&source_, first_expert}, experts, begin, held, keeps_active}, ranks));
}

TapeExecutor::Value TapeExecutor::own_tokens(const Value& x) const {
  if (groups().tensor == nullptr) return x;
  const ops::RowPart part = ops::row_part(x.size(0), *groups().tensor);
  return x.narrow(0, part.begin(), part.rows()).contiguous();
}

TapeExecutor::Value TapeExecutor::all_tokens(const Value& x) const {
  if (groups().tensor == nullptr) return x;
  return ops::gather_rows(x, ops::row_part(num_tokens_, *groups().tensor), *groups().tensor);
}

namespace {

// Of the targets of a batch's own tokens.
TapeResult run_own_log_probs(const ModelSpec& spec, ops::WeightSource& source,
                             std::shared_ptr<const kernels::RopeTable> rope,
                             const TapeInputs& inputs, float temperature,
                             ActivationType activations) {
  // Shared: layers that are computed again keep it.
  const auto run =
      std::make_shared<TapeExecutor>(spec, source, std::move(rope), inputs, activations);
  const ops::Backend& backend = inputs.backend != nullptr ? *inputs.backend : ops::cpu_backend();
  const at::Device device = backend.options().device();
  const at::Tensor hidden = TapeExecutor::hidden_states(run);
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
  return {scored.log_prob, scored.entropy, run->routes()};
}

// Of a batch's own tokens, by row.
at::Tensor run_own_values(const ModelSpec& spec, ops::WeightSource& source,
                          std::shared_ptr<const kernels::RopeTable> rope,
                          const TapeInputs& inputs) {
  const auto run = std::make_shared<TapeExecutor>(spec, source, std::move(rope), inputs);
  const ops::Backend& backend = inputs.backend != nullptr ? *inputs.backend : ops::cpu_backend();
  const at::Tensor hidden = run->own_tokens(TapeExecutor::hidden_states(run));
  return run->all_tokens(ops::linear_float(backend, hidden, {&source, spec.table.lm_head}))
      .squeeze(-1);
}

at::Tensor to_places(const std::vector<int64_t>& places, const at::Tensor& like) {
  return to_tensor(places, at::kLong).to(like.device());
}

}  // namespace

TapeResult run_log_probs(const ModelSpec& spec, ops::WeightSource& source,
                         std::shared_ptr<const kernels::RopeTable> rope, const TapeInputs& inputs,
                         float temperature, ActivationType activations) {
  ProcessGroup* const ranks = inputs.groups.context;
  if (ranks == nullptr) {
    return run_own_log_probs(spec, source, std::move(rope), inputs, temperature, activations);
  }
  NIBBLE_CHECK(!inputs.joined.defined(), "a draft head is not split over ranks");
  const ContextShare share = share_context(inputs.batch, ranks->rank(), ranks->world());
  TapeInputs own{share.batch,         {}, inputs.backend,   inputs.groups,
                 inputs.wants_routes, {}, inputs.recompute, share.rows};
  for (const at::Tensor& chosen : inputs.replay) {
    own.replay.push_back(chosen.index_select(
        0, to_places(share.order, chosen).narrow(0, share.rows.begin(), share.rows.rows())));
  }
  TapeResult result =
      run_own_log_probs(spec, source, std::move(rope), own, temperature, activations);
  const int64_t targets = result.log_prob.size(0);  // of each rank
  const ops::RowPart part{targets * ranks->world(), ranks->world(), ranks->rank()};
  const at::Tensor places = to_places(share.target_place, result.log_prob);
  for (at::Tensor* values : {&result.log_prob, &result.entropy}) {
    *values = ops::gather_rows(*values, part, *ranks).index_select(0, places);
  }
  for (at::Tensor& chosen : result.routes) {
    chosen = ops::gather_rows(chosen, share.rows, *ranks)
                 .index_select(0, to_places(share.place, chosen));
  }
  return result;
}

at::Tensor run_values(const ModelSpec& spec, ops::WeightSource& source,
                      std::shared_ptr<const kernels::RopeTable> rope, const TapeInputs& inputs) {
  NIBBLE_CHECK(spec.config.gives_values, "a model without a value head has no values");
  ProcessGroup* const ranks = inputs.groups.context;
  if (ranks == nullptr) return run_own_values(spec, source, std::move(rope), inputs);
  const ContextShare share = share_context(inputs.batch, ranks->rank(), ranks->world());
  const TapeInputs own{share.batch,         {}, inputs.backend,   inputs.groups,
                       inputs.wants_routes, {}, inputs.recompute, share.rows};
  const at::Tensor values = run_own_values(spec, source, std::move(rope), own);
  return ops::gather_rows(values, share.rows, *ranks)
      .index_select(0, to_places(share.place, values));
}

}  // namespace nibble
