#include "core/models/arena_executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/base/fail.h"
#include "core/kernels/activation.h"
#include "core/kernels/attention.h"
#include "core/kernels/expert_order.h"
#include "core/kernels/linear.h"
#include "core/kernels/norm.h"
#include "core/kernels/router.h"
#include "core/models/rope_table.h"

namespace nibble {
namespace {

constexpr int64_t kCopiedFloats = 65536;  // fewer are not worth another thread

// What gathering from other ranks adds: parts and the whole, of attention's and an MLP's inner
// width and of the stream; or parts of experts' results.
int64_t gathered_floats_per_token(const ModelConfig& whole) {
  const MoeConfig& moe = whole.moe;
  return 2 * (whole.q_rows() + whole.intermediate) + 6 * whole.hidden + moe.top_k * whole.hidden;
}

// Floats a token needs in the widest layer, with every operation's result alive until its end.
int64_t arena_floats_per_token(const ModelConfig& config) {
  const int64_t attention = 2 * config.hidden + 4 * config.q_rows() + 4 * config.kv_rows();
  const int64_t dense = 2 * config.hidden + 3 * config.intermediate;
  const MoeConfig& moe = config.moe;
  const int64_t routed = 3 * config.hidden + 2 * moe.num_experts + moe.top_k +
                         moe.top_k * (2 * config.hidden + 3 * moe.intermediate);
  const int64_t joined = config.joins_hidden ? 6 * config.hidden : 0;
  // One adapter's at a time.
  const int64_t widest = std::max({config.hidden, config.intermediate, config.q_rows()});
  const int64_t adapter = config.lora ? config.lora->rank + widest : 0;
  return adapter + std::max(joined, attention + std::max(dense, routed) + config.hidden);
}

int64_t arena_floats(const ModelConfig& whole, int64_t max_tokens, const Mesh& mesh) {
  const int64_t own = arena_floats_per_token(rank_config(whole, mesh));
  if (mesh.world == 1) return max_tokens * own;
  return (max_tokens + mesh.world) * (own + gathered_floats_per_token(whole));
}

std::span<const std::byte> bytes_of(const float* values, int64_t count) {
  return std::as_bytes(std::span(values, static_cast<size_t>(count)));
}
std::span<std::byte> bytes_of(float* values, int64_t count) {
  return std::as_writable_bytes(std::span(values, static_cast<size_t>(count)));
}

}  // namespace

KvCache::KvCache(const ModelConfig& config, int64_t num_slots)
    : num_slots_(num_slots),
      slot_floats_(config.kv_rows()),
      layer_floats_(num_slots * config.kv_rows()),
      data_(new float[static_cast<size_t>(2 * config.num_layers * layer_floats_)]) {}

int64_t KvCache::bytes_per_slot(const ModelConfig& config) {
  return 2 * config.num_layers * config.kv_rows() * static_cast<int64_t>(sizeof(float));
}

ArenaExecutor::ArenaExecutor(const ModelSpec& spec, Limits limits,
                             const kernels::Parallel& parallel, ActivationType activations,
                             StepRanks ranks)
    : spec_(spec),
      ranks_(ranks),
      config_(rank_config(spec.config, ranks.mesh())),
      limits_(limits),
      parallel_(parallel),
      activations_(activations),
      rope_(make_rope_table(spec.config.rope, spec.config.head_dim, limits.max_positions)),
      residual_(static_cast<size_t>(limits.max_tokens * spec.config.hidden)),
      arena_(static_cast<size_t>(arena_floats(spec.config, limits.max_tokens, ranks.mesh()))),
      routes_(
          static_cast<size_t>(spec.config.num_moe_layers()),
          std::vector<int32_t>(static_cast<size_t>(limits.max_tokens * spec.config.moe.top_k))) {}

int64_t ArenaExecutor::num_bytes(const ModelSpec& spec, Limits limits, const Mesh& mesh) {
  const ModelConfig& config = spec.config;
  return 4 * (limits.max_tokens * config.hidden + arena_floats(config, limits.max_tokens, mesh) +
              config.num_moe_layers() * limits.max_tokens * config.moe.top_k +
              limits.max_positions * config.head_dim);
}

const float* ArenaExecutor::run(const ArenaStep& step, const ops::WeightSource& weights,
                                KvCache& cache) {
  const auto tokens = static_cast<int64_t>(step.tokens.size());
  NIBBLE_CHECK(tokens >= 1 && tokens <= limits_.max_tokens &&
                   step.position.size() == step.tokens.size() &&
                   step.slot.size() == step.tokens.size(),
               "a step of {} tokens, at most {}", tokens, limits_.max_tokens);
  for (size_t i = 0; i < step.tokens.size(); ++i) {
    NIBBLE_CHECK(step.tokens[i] >= 0 && step.tokens[i] < spec_.config.vocab &&
                     step.position[i] >= 0 && step.position[i] < limits_.max_positions &&
                     step.slot[i] >= 0 && step.slot[i] < cache.num_slots(),
                 "token {}: id {}, position {}, slot {}", i, step.tokens[i], step.position[i],
                 step.slot[i]);
  }
  NIBBLE_CHECK(
      std::ssize(step.joined) == (spec_.table.join.exists() ? tokens * spec_.config.hidden : 0),
      "{} values to join with {} tokens", step.joined.size(), tokens);
  step_ = &step;
  num_tokens_ = step.tokens.size();
  weights_ = &weights;
  cache_ = &cache;
  used_ = 0;
  allocations_.clear();
  next_moe_layer_ = 0;
  return run_decoder(*this, spec_);
}

std::span<const int32_t> ArenaExecutor::routes(int64_t moe_layer) const {
  return std::span(routes_[static_cast<size_t>(moe_layer)])
      .first(num_tokens_ * static_cast<size_t>(spec_.config.moe.top_k));
}

float* ArenaExecutor::allocate(int64_t width, int64_t tokens) {
  const int64_t count = width * tokens;
  NIBBLE_CHECK(used_ + count <= static_cast<int64_t>(arena_.size()), "arena of {} floats is full",
               arena_.size());
  allocations_.push_back({used_, width});
  used_ += count;
  return arena_.data() + used_ - count;
}

int64_t ArenaExecutor::width_of(const float* value) const {
  if (value == residual_.data()) return spec_.config.hidden;
  for (const Allocation& allocation : allocations_) {
    if (arena_.data() + allocation.offset == value) return allocation.width;
  }
  NIBBLE_CHECK(false, "a value of another step");
  return 0;
}

ArenaExecutor::Value ArenaExecutor::rounded(Value value, int64_t count) const {
  if (activations_ == ActivationType::kBfloat16) {
    kernels::round_to_bf16(value, count, parallel_);
  }
  return value;
}

ArenaExecutor::Value ArenaExecutor::embed(int64_t parameter) {
  const kernels::WeightView w = weights_->weight(parameter);
  kernels::embed(step_->tokens.data(), static_cast<int64_t>(step_->tokens.size()), w.bf16(), w.cols,
                 residual_.data(), parallel_);
  return residual_.data();
}

ArenaExecutor::Value ArenaExecutor::join_hidden(Value embedded, const HiddenJoin& join) {
  const auto tokens = static_cast<int64_t>(step_->tokens.size());
  const int64_t hidden = spec_.config.hidden;
  float* given = allocate(hidden, tokens);
  std::copy(step_->joined.begin(), step_->joined.end(), given);
  const Value parts[] = {rms_norm(embedded, join.embedding_norm),
                         rms_norm(given, join.hidden_norm)};
  float* both = allocate(2 * hidden, tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < 2; ++i) {
      std::copy_n(parts[i] + t * hidden, hidden, both + (2 * t + i) * hidden);
    }
  }
  std::copy_n(linear(both, join.projection), tokens * hidden, residual_.data());
  return residual_.data();
}

void ArenaExecutor::enter_layer(int64_t /*layer*/, Value& /*residual*/) {
  used_ = 0;
  allocations_.clear();
}

void ArenaExecutor::leave_layer(int64_t /*layer*/, Value& /*residual*/) const {}

ArenaExecutor::Value ArenaExecutor::rms_norm(Value x, int64_t parameter) {
  const kernels::WeightView w = weights_->weight(parameter);
  const auto tokens = static_cast<int64_t>(step_->tokens.size());
  const int64_t width = width_of(x);
  float* y = allocate(width, tokens);
  kernels::rms_norm(x, w.bf16(), {tokens * width / w.cols, w.cols, spec_.config.rms_eps}, y,
                    parallel_);
  return rounded(y, tokens * width);
}

ArenaExecutor::Value ArenaExecutor::linear(Value x, int64_t parameter) {
  const kernels::WeightView w = weights_->weight(parameter);
  const auto tokens = static_cast<int64_t>(step_->tokens.size());
  const bool gathers = ranks_.group != nullptr && spec_.table.is_output_projection(parameter);
  if (gathers) x = gather_columns(x);
  float* y = allocate(w.rows, tokens);
  kernels::linear(x, w, tokens, y, w.rows, parallel_);
  rounded(y, tokens * w.rows);
  add_adapter(x, parameter, y);
  return gathers ? gather_columns(y) : y;
}

void ArenaExecutor::multiply(Value x, std::span<const int64_t> parameters, std::span<Value> y) {
  const auto tokens = static_cast<int64_t>(step_->tokens.size());
  products_.clear();
  for (size_t i = 0; i < parameters.size(); ++i) {
    const kernels::WeightView w = weights_->weight(parameters[i]);
    y[i] = allocate(w.rows, tokens);
    products_.push_back({x, w, tokens, y[i], w.rows});
  }
  kernels::linear_many(products_, parallel_);
  for (const kernels::Product& p : products_) rounded(p.y, tokens * p.w.rows);
  for (size_t i = 0; i < parameters.size(); ++i) add_adapter(x, parameters[i], y[i]);
}

void ArenaExecutor::all_gather(const float* part, int64_t count, float* all) const {
  ranks_.group->all_gather(bytes_of(part, count), bytes_of(all, count * ranks_.world()))->join();
}

// [T, C] on each rank -> [T, ranks * C].
ArenaExecutor::Value ArenaExecutor::gather_columns(Value x) {
  const auto tokens = static_cast<int64_t>(step_->tokens.size());
  const int64_t width = width_of(x);
  const int64_t ranks = ranks_.world();
  float* parts = allocate(ranks * width, tokens);
  all_gather(x, tokens * width, parts);
  float* y = allocate(ranks * width, tokens);
  for (int64_t r = 0; r < ranks; ++r) {
    for (int64_t t = 0; t < tokens; ++t) {
      std::memcpy(y + (t * ranks + r) * width, parts + (r * tokens + t) * width,
                  static_cast<size_t>(width) * sizeof(float));
    }
  }
  return y;
}

ArenaExecutor::Value ArenaExecutor::rope(Value x) {
  const auto tokens = static_cast<int64_t>(step_->tokens.size());
  const int64_t width = width_of(x);
  kernels::rope(x, step_->position.data(), tokens, width / spec_.config.head_dim, *rope_,
                kernels::RopeDirection::kForward, parallel_);
  return rounded(x, tokens * width);
}

ArenaExecutor::Value ArenaExecutor::attention(int64_t layer, Value q, Value k, Value v) {
  const ModelConfig& config = config_;
  const auto tokens = static_cast<int64_t>(step_->tokens.size());
  const int64_t width = cache_->slot_floats();
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t slot = step_->slot[static_cast<size_t>(t)];
    std::memcpy(cache_->keys(layer) + slot * width, k + t * width, static_cast<size_t>(width) * 4);
    std::memcpy(cache_->values(layer) + slot * width, v + t * width,
                static_cast<size_t>(width) * 4);
  }
  float* out = allocate(config.q_rows(), tokens);
  const kernels::AttentionShape shape{tokens, config.num_heads, config.num_kv_heads,
                                      config.head_dim,
                                      1.0f / std::sqrt(static_cast<float>(config.head_dim))};
  kernels::attention(q, cache_->keys(layer), cache_->values(layer), step_->keys, shape, out,
                     nullptr, parallel_);
  return rounded(out, tokens * config.q_rows());
}

ArenaExecutor::Value ArenaExecutor::silu_mul(Value gate, Value up) {
  const auto tokens = static_cast<int64_t>(step_->tokens.size());
  const int64_t width = width_of(gate);
  float* out = allocate(width, tokens);
  kernels::silu_mul(gate, up, tokens * width, out, parallel_);
  return rounded(out, tokens * width);
}

ArenaExecutor::Value ArenaExecutor::add(Value residual, Value x) {
  const auto count = static_cast<int64_t>(step_->tokens.size()) * spec_.config.hidden;
  kernels::add(residual, x, count, parallel_);
  return rounded(residual, count);
}

ArenaExecutor::Routing ArenaExecutor::route(int64_t /*layer*/, Value logits) {
  const MoeConfig& moe = spec_.config.moe;
  const auto tokens = static_cast<int64_t>(step_->tokens.size());
  float* prob = allocate(moe.num_experts, tokens);
  float* weight = allocate(moe.top_k, tokens);
  int32_t* expert = routes_[static_cast<size_t>(next_moe_layer_++)].data();
  kernels::router_top_k(logits, {tokens, moe.num_experts, moe.top_k, moe.norm_topk_prob},
                        kernels::RouterMode::kChoose, prob, expert, weight, parallel_);
  return {expert, weight};
}

ArenaExecutor::Value ArenaExecutor::experts(Value x, const Routing& routing, int64_t first_expert) {
  const MoeConfig& moe = spec_.config.moe;
  const int64_t hidden = spec_.config.hidden;
  const auto tokens = static_cast<int64_t>(step_->tokens.size());
  const TokenShare own = token_share(tokens, ranks_);
  const int64_t padded = own.rows * ranks_.world();
  float* part = allocate(moe.top_k * hidden, padded);
  if (ranks_.splits_experts) {
    run_held_experts(x, routing.expert, tokens, first_expert, part);
    exchange_parts(part, routing.expert, own);
  } else if (own.count > 0) {
    run_held_experts(x + own.begin * hidden, routing.expert + own.begin * moe.top_k, own.count,
                     first_expert, part);
  }
  float* y = allocate(hidden, own.rows);
  if (own.count > 0) {
    kernels::combine_experts(part, routing.weight + own.begin * moe.top_k, own.count, moe.top_k,
                             hidden, y, parallel_);
  }
  rounded(y, own.count * hidden);
  if (ranks_.group == nullptr) return y;
  std::fill(y + own.count * hidden, y + own.rows * hidden, 0.0f);
  float* all = allocate(hidden, padded);
  all_gather(y, own.rows * hidden, all);
  return all;
}

// Takes tokens through this rank's experts.
//   part  [tokens * k, hidden]: rows of pairs (token, choice) whose expert is here
void ArenaExecutor::run_held_experts(const float* x, const int32_t* expert, int64_t tokens,
                                     int64_t first_expert, float* part) {
  const MoeConfig& moe = spec_.config.moe;
  const int64_t hidden = spec_.config.hidden;
  const auto order = kernels::order_by_expert(expert, tokens, moe.top_k, moe.num_experts);
  const RowShard held = held_experts(moe.num_experts, ranks_.mesh(), ranks_.rank());
  const int64_t pairs = tokens * moe.top_k;
  float* gate = allocate(moe.intermediate, pairs);
  float* up = allocate(moe.intermediate, pairs);
  float* down = allocate(hidden, pairs);
  pair_token_.resize(static_cast<size_t>(pairs));
  for (size_t i = 0; i < pair_token_.size(); ++i) {
    pair_token_[i] = order.pair[i] / static_cast<int32_t>(moe.top_k);
  }
  // Pairs lie in the order of experts: expert e's are [begin, begin + count).
  const auto for_each_expert = [&](const auto& body) {
    for (int64_t e = held.begin; e < held.end; ++e) {
      const int64_t begin = order.begin[static_cast<size_t>(e)];
      const int64_t count = order.begin[static_cast<size_t>(e) + 1] - begin;
      if (count > 0) body(first_expert + 3 * e, begin, count);
    }
  };
  products_.clear();
  for_each_expert([&](int64_t index, int64_t begin, int64_t count) {
    for (const auto& [which, out] : {std::pair(0, gate), std::pair(1, up)}) {
      products_.push_back({x, weights_->weight(index + which), count,
                           out + begin * moe.intermediate, moe.intermediate,
                           pair_token_.data() + begin});
    }
  });
  kernels::linear_many(products_, parallel_);
  const int64_t held_begin = order.begin[static_cast<size_t>(held.begin)];
  const int64_t held_count = order.begin[static_cast<size_t>(held.end)] - held_begin;
  float* const own_gate = gate + held_begin * moe.intermediate;
  kernels::silu_mul(own_gate, up + held_begin * moe.intermediate, held_count * moe.intermediate,
                    own_gate, parallel_);
  products_.clear();
  for_each_expert([&](int64_t index, int64_t begin, int64_t count) {
    products_.push_back({gate + begin * moe.intermediate, weights_->weight(index + 2), count,
                         down + begin * hidden, hidden});
  });
  kernels::linear_many(products_, parallel_);
  parallel_.run(held_count, std::max<int64_t>(1, kCopiedFloats / hidden),
                [&](int64_t begin, int64_t end) {
                  for (int64_t i = held_begin + begin; i < held_begin + end; ++i) {
                    std::memcpy(part + order.pair[static_cast<size_t>(i)] * hidden,
                                down + i * hidden, static_cast<size_t>(hidden) * sizeof(float));
                  }
                });
}

// Every rank has the pairs of all tokens whose experts are its own; afterwards it has all pairs of
// its own tokens, at the beginning of `part`. Sizes do not depend on the routes: what a rank does
// not have travels too, and is not looked at.
void ArenaExecutor::exchange_parts(float* part, const int32_t* expert, const TokenShare& own) {
  const MoeConfig& moe = spec_.config.moe;
  const int64_t hidden = spec_.config.hidden;
  const int64_t pairs = own.rows * moe.top_k;
  float* arrived = allocate(moe.top_k * hidden, own.rows * ranks_.world());
  const int64_t total = pairs * hidden * ranks_.world();
  const std::vector<int64_t> bytes(static_cast<size_t>(ranks_.world()),
                                   pairs * hidden * static_cast<int64_t>(sizeof(float)));
  ranks_.group
      ->all_to_all(bytes_of(static_cast<const float*>(part), total), bytes,
                   bytes_of(arrived, total), bytes)
      ->join();
  const int64_t experts_here = moe.num_experts / ranks_.world();
  for (int64_t p = 0; p < own.count * moe.top_k; ++p) {
    const int64_t holder = expert[own.begin * moe.top_k + p] / experts_here;
    std::memcpy(part + p * hidden, arrived + (holder * pairs + p) * hidden,
                static_cast<size_t>(hidden) * sizeof(float));
  }
}

}  // namespace nibble
