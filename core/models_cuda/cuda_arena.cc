#include "core/models_cuda/cuda_arena.h"

#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <cmath>

#include "core/base/fail.h"
#include "core/cuda/check.h"
#include "core/cuda/stream.h"
#include "core/kernels_cuda/attention.h"
#include "core/kernels_cuda/dequantize.h"
#include "core/kernels_cuda/elementwise.h"
#include "core/kernels_cuda/linear.h"
#include "core/kernels_cuda/norm.h"
#include "core/kernels_cuda/panel_linear.h"
#include "core/kernels_cuda/rank_parts.h"
#include "core/kernels_cuda/router.h"
#include "core/models/rope_table.h"

namespace nibble {
namespace {

constexpr int64_t kAlignment = 128;  // values
// From so many tokens on `fast` leaves the decode kernel of linear.cu for panels and cuBLAS.
constexpr int64_t kPanelTokens = 17;

int64_t aligned(int64_t values) { return (values + kAlignment - 1) / kAlignment * kAlignment; }

// Values the widest layer needs, with every operation's result alive until its end.
int64_t arena_values(const ModelConfig& config, int64_t tokens) {
  const int64_t attention =
      config.hidden + 3 * config.q_rows() + 3 * config.kv_rows() + config.hidden;
  const MoeConfig& moe = config.moe;
  const int64_t dense = 2 * config.hidden + 3 * config.intermediate;
  const int64_t routed = 2 * config.hidden + 4 * moe.num_experts + 8 * moe.top_k +
                         moe.top_k * (2 * config.hidden + 3 * moe.intermediate);
  constexpr int64_t kNumValues = 32;  // each may be padded
  const int64_t joined = config.joins_hidden ? 5 * config.hidden : 0;
  // One adapter's at a time.
  const int64_t widest = std::max({config.hidden, config.intermediate, config.q_rows()});
  const int64_t adapter = config.lora ? config.lora->rank + widest : 0;
  return tokens *
             (adapter + std::max(joined, attention + std::max(dense, routed) + config.hidden)) +
         kNumValues * kAlignment + 4 * moe.num_experts;
}

// What gathering from other ranks adds, as in ArenaExecutor.
int64_t gathered_values(const ModelConfig& whole, int64_t tokens) {
  const MoeConfig& moe = whole.moe;
  return tokens * (2 * (whole.q_rows() + whole.intermediate) + 6 * whole.hidden +
                   2 * moe.top_k * (whole.hidden + 1)) +
         12 * kAlignment;
}

int64_t arena_values(const ModelConfig& whole, const Mesh& mesh, int64_t tokens) {
  if (mesh.world == 1) return arena_values(whole, tokens);
  tokens += mesh.world;  // parts are filled up
  return arena_values(rank_config(whole, mesh), tokens) + gathered_values(whole, tokens);
}

// The largest matrix that linear() multiplies with.
int64_t panel_values(const ParameterTable& table, const Mesh& mesh) {
  int64_t most = 0;
  for (int64_t p = 0; p < table.size(); ++p) {
    const ParameterRole role = table.at(p).role;
    if (role == ParameterRole::kAttention || role == ParameterRole::kMlp ||
        role == ParameterRole::kLoraA || role == ParameterRole::kLoraB) {
      most = std::max(most, used_rows(table, p, mesh, 0).rows() * table.at(p).cols);
    }
  }
  return most;
}

uint16_t* bf16(const CudaArena::Value& value) { return static_cast<uint16_t*>(value.data); }

}  // namespace

CudaKvCache::CudaKvCache(const ModelConfig& config, int64_t num_slots)
    : layer_values_(num_slots * config.kv_rows()),
      data_(static_cast<size_t>(2 * config.num_layers * layer_values_), DeviceKind::kCuda) {}

int64_t CudaKvCache::bytes_per_slot(const ModelConfig& config) {
  return 2 * config.num_layers * config.kv_rows() * static_cast<int64_t>(sizeof(uint16_t));
}

CudaArena::CudaArena(const ModelSpec& spec, Limits limits, const ops::Backend& backend,
                     Numerics numerics, StepRanks ranks)
    : spec_(spec),
      ranks_(ranks),
      config_(rank_config(spec.config, ranks.mesh())),
      limits_(limits),
      numerics_(numerics),
      rope_(backend.place(
          make_rope_table(spec.config.rope, spec.config.head_dim, limits.max_positions))),
      table_(static_cast<size_t>(spec.table.size() + 1), DeviceKind::kCuda),
      residual_(static_cast<size_t>(limits.max_tokens * spec.config.hidden), DeviceKind::kCuda),
      arena_(static_cast<size_t>(arena_values(spec.config, ranks.mesh(), limits.max_tokens)),
             DeviceKind::kCuda),
      panel_(static_cast<size_t>(panel_values(spec.table, ranks.mesh())), DeviceKind::kCuda),
      routes_(static_cast<size_t>(spec.config.num_moe_layers() * limits.max_tokens *
                                  spec.config.moe.top_k),
              DeviceKind::kCuda) {}

void CudaArena::set_weights(const ops::WeightSource& weights, cudaStream_t stream) {
  views_.clear();
  for (int64_t p = 0; p < spec_.table.size(); ++p) views_.push_back(weights.weight(p));
  kernels::WeightView head = views_[static_cast<size_t>(spec_.table.lm_head)];
  const RowShard own = head_share(head.rows, ranks_.rank(), ranks_.world());
  head.data = head.bf16() + own.begin * head.cols;
  head.rows = own.rows();
  views_.push_back(head);
  NIBBLE_CUDA_CHECK(cudaMemcpyAsync(table_.data(), views_.data(),
                                    views_.size() * sizeof(kernels::WeightView),
                                    cudaMemcpyHostToDevice, stream));
}

int64_t CudaArena::num_bytes(const ModelSpec& spec, Limits limits, const Mesh& mesh) {
  const ModelConfig& config = spec.config;
  return 2 * (limits.max_tokens * config.hidden + arena_values(config, mesh, limits.max_tokens) +
              panel_values(spec.table, mesh)) +
         4 * config.num_moe_layers() * limits.max_tokens * config.moe.top_k +
         4 * limits.max_positions * config.head_dim;
}

kernels::cuda::DeviceWeight CudaArena::weight(int64_t parameter) const {
  return {views_[static_cast<size_t>(parameter)], table_.data() + parameter};
}

kernels::cuda::DeviceWeight CudaArena::head() const { return weight(spec_.table.size()); }

const int32_t* CudaArena::routes(int64_t moe_layer) const {
  return routes_.data() + moe_layer * limits_.max_tokens * spec_.config.moe.top_k;
}

const uint16_t* CudaArena::run(const CudaStep& step, CudaKvCache& cache, cudaStream_t stream) {
  NIBBLE_CHECK(step.num_tokens >= 1 && step.num_tokens <= limits_.max_tokens && !views_.empty(),
               "a step of {} tokens, at most {}", step.num_tokens, limits_.max_tokens);
  step_ = &step;
  cache_ = &cache;
  stream_ = stream;
  used_ = 0;
  next_moe_layer_ = 0;
  return bf16(run_decoder(*this, spec_));
}

uint16_t* CudaArena::allocate(int64_t values) {
  NIBBLE_CHECK(used_ + aligned(values) <= static_cast<int64_t>(arena_.size()),
               "arena of {} values is full", arena_.size());
  uint16_t* at = arena_.data() + used_;
  used_ += aligned(values);
  return at;
}

CudaArena::Value CudaArena::embed(int64_t parameter) {
  kernels::cuda::embed(step_->tokens, weight(parameter), step_->num_tokens, residual_.data(),
                       stream_);
  return {residual_.data(), spec_.config.hidden};
}

CudaArena::Value CudaArena::join_hidden(Value embedded, const HiddenJoin& join) {
  NIBBLE_CHECK(step_->joined != nullptr, "a draft head needs hidden states of its model");
  const int64_t tokens = step_->num_tokens;
  const int64_t hidden = spec_.config.hidden;
  uint16_t* parts = allocate(2 * tokens * hidden);
  const kernels::NormShape shape{tokens, hidden, spec_.config.rms_eps};
  kernels::cuda::rms_norm(bf16(embedded), weight(join.embedding_norm), shape, parts, stream_);
  kernels::cuda::rms_norm(step_->joined, weight(join.hidden_norm), shape, parts + tokens * hidden,
                          stream_);
  const Value both{allocate(2 * tokens * hidden), 2 * hidden};
  kernels::cuda::join_columns(parts, 2, tokens, hidden, bf16(both), stream_);
  const Value y = own_linear(both, join.projection);
  NIBBLE_CUDA_CHECK(cudaMemcpyAsync(residual_.data(), y.data,
                                    static_cast<size_t>(tokens * hidden) * sizeof(uint16_t),
                                    cudaMemcpyDeviceToDevice, stream_));
  return {residual_.data(), hidden};
}

void CudaArena::enter_layer(int64_t /*layer*/, Value& /*residual*/) { used_ = 0; }

void CudaArena::leave_layer(int64_t /*layer*/, Value& /*residual*/) const {}

CudaArena::Value CudaArena::rms_norm(Value x, int64_t parameter) {
  const auto w = weight(parameter);
  const Value y{allocate(x.width * step_->num_tokens), x.width};
  kernels::cuda::rms_norm(
      bf16(x), w, {step_->num_tokens * x.width / w.view.cols, w.view.cols, spec_.config.rms_eps},
      bf16(y), stream_);
  return y;
}

void CudaArena::all_gather(const uint16_t* part, int64_t count, uint16_t* all) const {
  const auto size = static_cast<size_t>(count);
  ranks_.group
      ->all_gather(
          std::as_bytes(std::span(part, size)),
          std::as_writable_bytes(std::span(all, size * static_cast<size_t>(ranks_.world()))))
      ->join();
}

// [T, C] on each rank -> [T, ranks * C].
CudaArena::Value CudaArena::gather_columns(Value x) {
  const int64_t tokens = step_->num_tokens;
  const int64_t world = ranks_.world();
  uint16_t* parts = allocate(world * tokens * x.width);
  all_gather(bf16(x), tokens * x.width, parts);
  const Value y{allocate(world * tokens * x.width), world * x.width};
  kernels::cuda::join_columns(parts, world, tokens, x.width, bf16(y), stream_);
  return y;
}

CudaArena::Value CudaArena::linear(Value x, int64_t parameter) {
  if (ranks_.group == nullptr || !spec_.table.is_output_projection(parameter)) {
    return own_linear(x, parameter);
  }
  return gather_columns(own_linear(gather_columns(x), parameter));
}

CudaArena::Value CudaArena::own_linear(Value x, int64_t parameter) {
  const Value y = product(x, parameter);
  const AdapterParameters adapter = spec_.table.adapter_of(parameter);
  if (!adapter.exists()) return y;
  const int64_t used = used_;
  const Value low = product(x, adapter.a);
  if (const float scale = spec_.config.lora->scale(); scale != 1.0f) {
    kernels::cuda::scale(bf16(low), scale, step_->num_tokens * low.width, stream_);
  }
  const Value added = product(low, adapter.b);
  kernels::cuda::add(bf16(y), bf16(added), step_->num_tokens * y.width, stream_);
  used_ = used;  // what follows on the stream may have its memory
  return y;
}

CudaArena::Value CudaArena::product(Value x, int64_t parameter) {
  const auto w = weight(parameter);
  const int64_t tokens = step_->num_tokens;
  const Value y{allocate(w.view.rows * tokens), w.view.rows};
  if (numerics_ == Numerics::kFast && tokens >= kPanelTokens) {
    const auto options =
        at::TensorOptions()
            .dtype(at::kBFloat16)
            .device(at::kCUDA, static_cast<c10::DeviceIndex>(at::cuda::current_device()));
    // A graph must not keep the address of one version's weights.
    const bool in_place = w.view.format == kernels::WeightFormat::kBf16 && !is_captured(stream_);
    if (!in_place) kernels::cuda::dequantize(w, panel_.data(), stream_);
    const at::Tensor matrix =
        at::from_blob(in_place ? const_cast<uint16_t*>(w.view.bf16()) : panel_.data(),
                      {w.view.rows, w.view.cols}, options);
    at::Tensor out = at::from_blob(y.data, {tokens, y.width}, options);
    at::mm_out(out, at::from_blob(x.data, {tokens, x.width}, options), matrix.t());
  } else if (numerics_ == Numerics::kExact &&
             kernels::cuda::suits_panel_linear(w.view.rows, w.view.cols, tokens)) {
    if (w.view.format == kernels::WeightFormat::kBf16) {
      kernels::cuda::panel_linear(bf16(x), w, tokens, bf16(y), stream_);
      return y;
    }
    kernels::cuda::dequantize(w, panel_.data(), stream_);
    kernels::cuda::panel_linear(bf16(x), panel_.data(), w.view.rows, w.view.cols, tokens, bf16(y),
                                stream_);
  } else {
    kernels::cuda::linear(bf16(x), w, tokens, bf16(y), stream_);
  }
  return y;
}

CudaArena::Value CudaArena::router_logits(Value x, int64_t parameter) {
  const auto w = weight(parameter);
  auto* logits = reinterpret_cast<float*>(allocate(2 * w.view.rows * step_->num_tokens));
  kernels::cuda::linear(bf16(x), w, step_->num_tokens, logits, stream_);
  return {logits, w.view.rows};
}

CudaArena::Value CudaArena::rope(Value x) {
  kernels::cuda::rope(bf16(x), bf16(x), step_->position, step_->num_tokens,
                      x.width / spec_.config.head_dim, *rope_, kernels::RopeDirection::kForward,
                      stream_);
  return x;
}

CudaArena::Value CudaArena::attention(int64_t layer, Value q, Value k, Value v) {
  const ModelConfig& config = config_;
  const int64_t tokens = step_->num_tokens;
  kernels::cuda::scatter_rows(bf16(k), step_->slot, tokens, k.width, cache_->keys(layer), stream_);
  kernels::cuda::scatter_rows(bf16(v), step_->slot, tokens, v.width, cache_->values(layer),
                              stream_);
  const Value out{allocate(q.width * tokens), q.width};
  const kernels::AttentionShape shape{tokens, config.num_heads, config.num_kv_heads,
                                      config.head_dim,
                                      1.0f / std::sqrt(static_cast<float>(config.head_dim))};
  kernels::cuda::attention(bf16(q), cache_->keys(layer), cache_->values(layer), step_->keys, shape,
                           bf16(out), nullptr, stream_);
  return out;
}

CudaArena::Value CudaArena::silu_mul(Value gate, Value up) {
  const Value out{allocate(gate.width * step_->num_tokens), gate.width};
  kernels::cuda::silu_mul(bf16(gate), bf16(up), gate.width * step_->num_tokens, bf16(out), stream_);
  return out;
}

CudaArena::Value CudaArena::add(Value residual, Value x) {
  kernels::cuda::add(bf16(residual), bf16(x), step_->num_tokens * residual.width, stream_);
  return residual;
}

CudaArena::Routing CudaArena::route(int64_t /*layer*/, Value logits) {
  const MoeConfig& moe = spec_.config.moe;
  const int64_t tokens = step_->num_tokens;
  auto* prob = reinterpret_cast<float*>(allocate(2 * moe.num_experts * tokens));
  auto* chosen_weight = reinterpret_cast<float*>(allocate(2 * moe.top_k * tokens));
  auto* expert = const_cast<int32_t*>(routes(next_moe_layer_++));
  kernels::cuda::router_top_k(static_cast<const float*>(logits.data),
                              {tokens, moe.num_experts, moe.top_k, moe.norm_topk_prob},
                              kernels::RouterMode::kChoose, prob, expert, chosen_weight, stream_);
  return {expert, chosen_weight};
}

CudaArena::Value CudaArena::experts(Value x, const Routing& routing, int64_t first_expert) {
  const int64_t top_k = spec_.config.moe.top_k;
  const TokenShare own = token_share(step_->num_tokens, ranks_);
  const Value y{allocate(own.rows * x.width), x.width};
  if (ranks_.splits_experts || own.count > 0) {
    const int64_t begin = ranks_.splits_experts ? 0 : own.begin;
    const int64_t tokens = ranks_.splits_experts ? step_->num_tokens : own.count;
    PairParts parts = run_held_experts(bf16(x) + begin * x.width, routing.expert + begin * top_k,
                                       tokens, first_expert);
    if (ranks_.splits_experts) parts = exchange_parts(parts, routing.expert, own);
    if (own.count > 0) {
      kernels::cuda::combine_experts(parts.part, parts.place, routing.weight + own.begin * top_k,
                                     own.count, top_k, x.width, bf16(y), stream_);
    }
  }
  if (ranks_.group == nullptr) return y;
  const Value all{allocate(own.rows * ranks_.world() * x.width), x.width};
  all_gather(bf16(y), own.rows * x.width, bf16(all));
  return all;
}

// Takes tokens through this rank's experts.
CudaArena::PairParts CudaArena::run_held_experts(const uint16_t* x, const int32_t* expert,
                                                 int64_t tokens, int64_t first_expert) {
  const MoeConfig& moe = spec_.config.moe;
  const int64_t hidden = spec_.config.hidden;
  const int64_t pairs = tokens * moe.top_k;
  const RowShard held = held_experts(moe.num_experts, ranks_.mesh(), ranks_.rank());
  auto* begin = reinterpret_cast<int32_t*>(allocate(2 * (moe.num_experts + 1)));
  auto* pair = reinterpret_cast<int32_t*>(allocate(2 * pairs));
  auto* place = reinterpret_cast<int32_t*>(allocate(2 * pairs));
  kernels::cuda::order_by_expert(expert, pairs, moe.num_experts, begin, pair, stream_);
  kernels::cuda::invert_pairs(pair, pairs, place, stream_);
  uint16_t* input = allocate(pairs * hidden);
  kernels::cuda::gather_pairs(x, pair, pairs, moe.top_k, hidden, input, stream_);
  const auto product = [&](const uint16_t* from, int which) {
    const auto w = weight(first_expert + 3 * held.begin + which);
    uint16_t* y = allocate(pairs * w.view.rows);
    kernels::cuda::grouped_linear(from, {w.view, w.on_device, held.rows(), 3}, begin + held.begin,
                                  pairs, y, stream_);
    return y;
  };
  const uint16_t* gate = product(input, 0);
  const uint16_t* up = product(input, 1);
  uint16_t* active = allocate(pairs * moe.intermediate);
  kernels::cuda::silu_mul(gate, up, pairs * moe.intermediate, active, stream_);
  return {product(active, 2), pair, place};
}

// Every rank has the pairs of all tokens whose experts are its own; the result has all pairs of
// this rank's tokens. Sizes do not depend on the routes, so that a graph can be captured: what a
// rank does not have travels too, and is not looked at.
CudaArena::PairParts CudaArena::exchange_parts(const PairParts& parts, const int32_t* expert,
                                               const TokenShare& own) {
  const MoeConfig& moe = spec_.config.moe;
  const int64_t hidden = spec_.config.hidden;
  const int64_t world = ranks_.world();
  const int64_t stride = own.rows * moe.top_k;
  const int64_t values = stride * world * hidden;
  uint16_t* by_pair = allocate(values);
  kernels::cuda::scatter_rows(parts.part, parts.pair, step_->num_tokens * moe.top_k, hidden,
                              by_pair, stream_);
  uint16_t* arrived = allocate(values);
  const std::vector<int64_t> bytes(static_cast<size_t>(world), stride * hidden * 2);
  ranks_.group
      ->all_to_all(std::as_bytes(std::span(by_pair, static_cast<size_t>(values))), bytes,
                   std::as_writable_bytes(std::span(arrived, static_cast<size_t>(values))), bytes)
      ->join();
  auto* place = reinterpret_cast<int32_t*>(allocate(2 * stride));
  kernels::cuda::places_from_holders(expert + own.begin * moe.top_k, own.count * moe.top_k,
                                     moe.num_experts / world, stride, place, stream_);
  return {arrived, nullptr, place};
}

}  // namespace nibble
