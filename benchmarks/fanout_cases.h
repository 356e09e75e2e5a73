#pragma once

#include <string>

#include "core/spec/model_config.h"
#include "core/spec/parameters.h"
#include "weight_sync/cluster_spec.h"
#include "weight_sync/manifest.h"

namespace nibble {

/// The published sizes of Qwen3-30B-A3B, as its config.json has them.
ModelConfig qwen3_30b_a3b();
/// Dense, three layers: for quick cases.
ModelConfig small_qwen3();

/// A model as it is stored: experts, or every Linear, in 4 bits.
struct StoredModel {
  ParameterTable table;
  Manifest manifest;
};
StoredModel stored_model(const ModelConfig& config, int64_t group_size);

/// A cluster of `trainer_nodes` and `rollout_nodes`, each with `gpus` GPUs; with `mixed` > 0
/// instead so many nodes that have half trainers, half rollout.
struct ClusterCase {
  int64_t trainer_nodes = 1;
  int64_t rollout_nodes = 1;
  int64_t mixed = 0;
  int64_t colocated = 0;
  int64_t gpus = 8;
  int64_t replica_gpus = 1;
  int64_t expert = 1;
  double nvlink_gb_per_s = 360.0;
  double nic_gb_per_s = 45.0;
  std::string nic_of = "gpu";
  int64_t chunk_bytes = int64_t{16} << 20;

  std::string name() const;
  ClusterSpec cluster() const;
};

}  // namespace nibble
