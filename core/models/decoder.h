#pragma once

#include <array>

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

// A layer is a program over an executor. TapeExecutor (trainer) allocates and records gradients;
// ArenaExecutor (engine) writes into static buffers. Same operations, same order, so the results
// agree to the bit. Executor::Value names an activation; parameters are indices.

/// What attention's output projection is given: norm, q, k and v, attention.
template <typename Executor>
typename Executor::Value mix_tokens(Executor& run, const ModelSpec& spec, int64_t layer,
                                    const typename Executor::Value& residual) {
  const LayerParameters& p = spec.table.layers[static_cast<size_t>(layer)];
  const auto x = run.rms_norm(residual, p.input_norm);
  auto [q, k, v] = run.linears(x, std::array{p.q, p.k, p.v});
  if (spec.config.qk_norm) {
    q = run.rms_norm(q, p.q_norm);
    k = run.rms_norm(k, p.k_norm);
  }
  q = run.rope(q);
  k = run.rope(k);
  return run.attention(layer, q, k, v);
}

/// What a dense MLP's down projection is given.
template <typename Executor>
typename Executor::Value gate_tokens(Executor& run, const LayerParameters& p,
                                     const typename Executor::Value& x) {
  const auto [gate, up] = run.linears(x, std::array{p.gate, p.up});
  return run.silu_mul(gate, up);
}

/// What a layer of experts adds to the residual stream. Ranks that share their tokens each take
/// some of them through the experts.
template <typename Executor>
typename Executor::Value route_tokens(Executor& run, const LayerParameters& p, int64_t layer,
                                      const typename Executor::Value& x) {
  const auto own = run.own_tokens(x);
  const auto routing = run.route(layer, run.router_logits(own, p.router));
  return run.all_tokens(run.experts(own, routing, p.first_expert));
}

/// What a decoder layer does between entry and exit.
template <typename Executor>
void run_layer_body(Executor& run, const ModelSpec& spec, int64_t layer,
                    typename Executor::Value& residual) {
  const LayerParameters& p = spec.table.layers[static_cast<size_t>(layer)];
  {
    const auto mixed = mix_tokens(run, spec, layer, residual);
    residual = run.add(residual, run.linear(mixed, p.o));
  }
  {
    const auto x = run.rms_norm(residual, p.post_norm);
    if (p.router < 0) {
      residual = run.add(residual, run.linear(gate_tokens(run, p, x), p.down));
    } else {
      residual = run.add(residual, route_tokens(run, p, layer, x));
    }
  }
}

/// One decoder layer.
template <typename Executor>
void run_layer(Executor& run, const ModelSpec& spec, int64_t layer,
               typename Executor::Value& residual) {
  run.enter_layer(layer, residual);
  run_layer_body(run, spec, layer, residual);
  run.leave_layer(layer, residual);
}

/// Token ids -> final hidden states: embedding, all layers, final norm. A draft head also has
/// hidden states of its model as input, and joins them with the embeddings.
///   run_one(layer, residual)  runs one layer
template <typename Executor, typename RunLayer>
typename Executor::Value run_decoder(Executor& run, const ModelSpec& spec, RunLayer run_one) {
  auto residual = run.embed(spec.table.embedding);
  if (spec.table.join.exists()) residual = run.join_hidden(residual, spec.table.join);
  for (int64_t layer = 0; layer < spec.config.num_layers; ++layer) run_one(layer, residual);
  return run.rms_norm(residual, spec.table.final_norm);
}
template <typename Executor>
typename Executor::Value run_decoder(Executor& run, const ModelSpec& spec) {
  return run_decoder(run, spec, [&](int64_t layer, typename Executor::Value& residual) {
    run_layer(run, spec, layer, residual);
  });
}

}  // namespace nibble
