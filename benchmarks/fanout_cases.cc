#include "benchmarks/fanout_cases.h"

#include <fmt/format.h>

#include "core/spec/quantization.h"

namespace nibble {
namespace {

ModelConfig qwen3(int64_t hidden, int64_t intermediate, int64_t layers, int64_t heads,
                  int64_t kv_heads, int64_t vocab) {
  ModelConfig config;
  config.architecture = Architecture::kQwen3;
  config.vocab = vocab;
  config.hidden = hidden;
  config.intermediate = intermediate;
  config.num_layers = layers;
  config.num_heads = heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = 128;
  config.max_position = 40960;
  config.qk_norm = true;
  config.layer_is_moe.assign(static_cast<size_t>(layers), false);
  return config;
}

}  // namespace

ModelConfig qwen3_30b_a3b() {
  ModelConfig config = qwen3(2048, 6144, 48, 32, 4, 151936);
  config.architecture = Architecture::kQwen3Moe;
  config.moe = {128, 8, 768, true};
  config.layer_is_moe.assign(48, true);
  return config;
}

ModelConfig small_qwen3() { return qwen3(1024, 3072, 3, 8, 4, 16384); }

StoredModel stored_model(const ModelConfig& config, int64_t group_size) {
  ParameterTable table = model_parameters(config);
  const QuantizationPlan plan = plan_quantization(table, default_targets(config), 4, group_size);
  Manifest manifest = make_manifest(table, plan);
  return {std::move(table), std::move(manifest)};
}

std::string ClusterCase::name() const {
  std::string nodes = fmt::format("{} -> {} x {}", trainer_nodes, rollout_nodes, gpus);
  if (mixed > 0) nodes = fmt::format("{} x ({}+{})", mixed, gpus / 2, gpus - gpus / 2);
  if (colocated > 0) nodes = fmt::format("{} x {} colocated", colocated, gpus);
  return fmt::format("{} G={} nic/{}", nodes, replica_gpus, nic_of);
}

ClusterSpec ClusterCase::cluster() const {
  std::string nodes = fmt::format("[{{ count: {}, trainers: {} }}, {{ count: {}, rollout: {} }}]",
                                  trainer_nodes, gpus, rollout_nodes, gpus);
  if (mixed > 0) {
    nodes = fmt::format("[{{ count: {}, trainers: {}, rollout: {} }}]", mixed, gpus / 2,
                        gpus - gpus / 2);
  }
  if (colocated > 0) nodes = fmt::format("[{{ count: {}, colocated: {} }}]", colocated, gpus);
  return parse_cluster(
      fmt::format("nodes: {}\nreplica_gpus: {}\ntrainer: {{ expert: {} }}\n"
                  "links: {{ nvlink_gb_per_s: {}, nic_gb_per_s: {}, nic_of: {} }}\n"
                  "chunk_bytes: {}\n",
                  nodes, replica_gpus, expert, nvlink_gb_per_s, nic_gb_per_s, nic_of, chunk_bytes),
      name());
}

}  // namespace nibble
