#pragma once

#include "core/spec/model_config.h"
#include "core/spec/parameters.h"

namespace nibble {

/// A decoder's architecture: what the checkpoint says and where each parameter is. The one
/// specification that both executors run.
struct ModelSpec {
  ModelConfig config;
  ParameterTable table;
};
ModelSpec make_model_spec(const ModelConfig& config);

/// One decoder layer as a program over an executor. TapeExecutor (trainer) allocates and records
/// gradients; ArenaExecutor (engine) writes into static buffers. Same operations, same order, so
/// the results agree to the bit. Executor::Value names an activation; parameters are indices.
template <typename Executor>
void run_layer(Executor& run, const ModelSpec& spec, int64_t layer,
               typename Executor::Value& residual) {
  const ModelConfig& config = spec.config;
  const LayerParameters& p = spec.table.layers[static_cast<size_t>(layer)];
  run.enter_layer(layer, residual);
  {
    const auto x = run.rms_norm(residual, p.input_norm);
    auto q = run.linear(x, p.q);
    auto k = run.linear(x, p.k);
    const auto v = run.linear(x, p.v);
    if (config.qk_norm) {
      q = run.rms_norm(q, p.q_norm);
      k = run.rms_norm(k, p.k_norm);
    }
    q = run.rope(q);
    k = run.rope(k);
    const auto mixed = run.attention(layer, q, k, v);
    residual = run.add(residual, run.linear(mixed, p.o));
  }
  {
    const auto x = run.rms_norm(residual, p.post_norm);
    if (p.router < 0) {
      const auto active = run.silu_mul(run.linear(x, p.gate), run.linear(x, p.up));
      residual = run.add(residual, run.linear(active, p.down));
    } else {
      // Ranks that share their tokens each take some of them through the experts.
      const auto own = run.own_tokens(x);
      const auto routing = run.route(layer, run.router_logits(own, p.router));
      residual = run.add(residual, run.all_tokens(run.experts(own, routing, p.first_expert)));
    }
  }
  run.leave_layer(layer, residual);
}

/// Token ids -> final hidden states: embedding, all layers, final norm.
template <typename Executor>
typename Executor::Value run_decoder(Executor& run, const ModelSpec& spec) {
  auto residual = run.embed(spec.table.embedding);
  for (int64_t layer = 0; layer < spec.config.num_layers; ++layer) {
    run_layer(run, spec, layer, residual);
  }
  return run.rms_norm(residual, spec.table.final_norm);
}

}  // namespace nibble
