#include "trainer/routing_replay.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {
namespace {

int32_t expert_at(const MicroBatch& batch, size_t choice) {
  if (batch.route_shape.bytes_per_expert == 1) return batch.routes[choice];
  return batch.routes[2 * choice] | batch.routes[2 * choice + 1] << 8;
}

void check_shape(const MicroBatch& batch, const ModelConfig& config) {
  const RouteShape& shape = batch.route_shape;
  const auto tokens = static_cast<int64_t>(batch.packed.tokens.size());
  if (batch.routes.empty()) {
    fail(ErrorCode::kInvalidArgument, "samples came without the experts that were chosen for them");
  }
  if (shape.layers != config.num_moe_layers() || shape.top_k != config.moe.top_k ||
      std::ssize(batch.routes) != tokens * shape.bytes_per_token()) {
    fail(ErrorCode::kInvalidArgument,
         "{} bytes of routes for {} tokens, {} layers and {} experts a token; the model has {} "
         "layers and {} experts a token",
         batch.routes.size(), tokens, shape.layers, shape.top_k, config.num_moe_layers(),
         config.moe.top_k);
  }
}

void check_choice(const int32_t* chosen, const MoeConfig& moe, int64_t token, int64_t layer) {
  for (int64_t j = 0; j < moe.top_k; ++j) {
    const bool is_twice = std::find(chosen, chosen + j, chosen[j]) != chosen + j;
    if (chosen[j] < moe.num_experts && !is_twice) continue;
    fail(ErrorCode::kInvalidArgument, "token {} in MoE layer {} was sent to expert {}{}", token,
         layer, chosen[j], is_twice ? " twice" : fmt::format(" of {}", moe.num_experts));
  }
}

}  // namespace

std::vector<at::Tensor> replay_of(const MicroBatch& batch, const ModelConfig& config,
                                  const ops::Backend& backend) {
  check_shape(batch, config);
  const auto tokens = static_cast<int64_t>(batch.packed.tokens.size());
  const int64_t layers = batch.route_shape.layers, k = batch.route_shape.top_k;
  const at::Tensor all = at::empty({layers, tokens, k}, at::kInt);
  for (int64_t layer = 0; layer < layers; ++layer) {
    int32_t* const out = all.mutable_data_ptr<int32_t>() + layer * tokens * k;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < k; ++j) {
        out[t * k + j] = expert_at(batch, static_cast<size_t>((t * layers + layer) * k + j));
      }
      check_choice(out + t * k, config.moe, t, layer);
    }
  }
  return all.to(backend.options().device()).unbind(0);  // one copy; every layer's lies whole
}

void count_experts(const MicroBatch& batch, int64_t num_experts, std::vector<int64_t>& counts) {
  const RouteShape& shape = batch.route_shape;
  counts.resize(static_cast<size_t>(shape.layers * num_experts));
  const auto choices = batch.routes.size() / static_cast<size_t>(shape.bytes_per_expert);
  for (size_t c = 0; c < choices; ++c) {
    const auto layer = static_cast<int64_t>(c) / shape.top_k % shape.layers;
    ++counts[static_cast<size_t>(layer * num_experts + expert_at(batch, c))];
  }
}

ExpertLoad expert_load(const std::vector<int64_t>& counts, int64_t num_experts) {
  ExpertLoad load;
  const auto layers = static_cast<int64_t>(counts.size()) / num_experts;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const auto begin = counts.begin() + layer * num_experts;
    int64_t sum = 0, most = 0, without = 0;
    for (auto count = begin; count != begin + num_experts; ++count) {
      sum += *count;
      most = std::max(most, *count);
      without += *count == 0 ? 1 : 0;
    }
    if (sum == 0) continue;
    load.busiest += static_cast<double>(most * num_experts) / static_cast<double>(sum * layers);
    load.idle += static_cast<double>(without) / static_cast<double>(num_experts * layers);
  }
  return load;
}

}  // namespace nibble
