#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

#include "core/config/fields.h"
#include "core/spec/mesh.h"

namespace nibble {

/// Who shares a network card.
enum class NicScope { kGpu, kNode };
constexpr std::array<EnumName<NicScope>, 2> enum_names(NicScope) {
  return {{{NicScope::kGpu, "gpu"}, {NicScope::kNode, "node"}}};
}

/// `count` nodes that are alike.
struct NodeGroup {
  int64_t count = 1;
  int64_t trainers = 0;
  int64_t rollout = 0;
  int64_t colocated = 0;
};

template <typename Visitor>
void visit_fields(Visitor& v, NodeGroup& c) {
  v.field("count", c.count, "nodes", "that are alike", Range{1, 1024});
  v.field("trainers", c.trainers, "GPUs", "of each node that only train", Range{0, 64});
  v.field("rollout", c.rollout, "GPUs", "of each node that only generate", Range{0, 64});
  v.field("colocated", c.colocated, "GPUs", "of each node that do both", Range{0, 64});
}

/// Rates that are attained, one direction, in GB/s (1e9 bytes a second); each link carries both
/// directions at once.
struct LinkRates {
  double nvlink_gb_per_s = 0.0;
  double nic_gb_per_s = 0.0;
  NicScope nic_of = NicScope::kGpu;
};

template <typename Visitor>
void visit_fields(Visitor& v, LinkRates& c) {
  v.field("nvlink_gb_per_s", c.nvlink_gb_per_s, "GB/s", "of one GPU, each direction", Above{0});
  v.field("nic_gb_per_s", c.nic_gb_per_s, "GB/s",
          "of one network card, each direction; needed by several nodes", Above{0});
  v.field("nic_of", c.nic_of, "", "gpu: every GPU has its own card; node: a node's GPUs share one");
}

/// How trainer ranks share the model, as in a job's `parallel`.
struct TrainerShares {
  int64_t tensor = 1;
  int64_t expert = 1;
};

template <typename Visitor>
void visit_fields(Visitor& v, TrainerShares& c) {
  v.field("tensor", c.tensor, "ranks", "parallel.tensor of the job", Range{1, 1024});
  v.field("expert", c.expert, "ranks", "parallel.expert of the job", Range{1, 1024});
}

/// A cluster file: GPUs, who they are and how they are linked.
struct ClusterConfig {
  std::vector<NodeGroup> nodes;
  int64_t replica_gpus = 1;
  TrainerShares trainer;
  LinkRates links;
  int64_t chunk_bytes = int64_t{16} << 20;
};

template <typename Visitor>
void visit_fields(Visitor& v, ClusterConfig& c) {
  v.section("nodes", c.nodes, "groups of nodes, in order");
  v.field("replica_gpus", c.replica_gpus, "GPUs",
          "that serve one copy of the model, each with its rows", Range{1, 1024});
  v.section("trainer", c.trainer, "how trainers share the model");
  v.section("links", c.links, "attained rates");
  v.field("chunk_bytes", c.chunk_bytes, "bytes", "that a worker has whole before it sends them on",
          AtLeast{4096});
}

struct ClusterGpu {
  int node = 0;
  int trainer_rank = -1;   ///< -1: does not train
  int rollout_place = -1;  ///< place / replica_gpus is the replica, the remainder the shard
};

/// GPUs numbered by node; in a node colocated ones come first, then trainers, then rollout.
/// Trainer ranks and rollout places count in that order.
struct ClusterSpec {
  std::vector<ClusterGpu> gpus;
  std::vector<int> trainers;  ///< GPU of each trainer rank
  std::vector<int> rollout;   ///< GPU of each rollout place
  int num_nodes = 0;
  int replica_gpus = 1;
  Mesh mesh;  ///< of the trainers
  LinkRates links;
  int64_t chunk_bytes = 0;

  int num_replicas() const { return static_cast<int>(rollout.size()) / replica_gpus; }
  int gpu_of(int replica, int shard) const {
    return rollout[static_cast<size_t>(replica) * static_cast<size_t>(replica_gpus) +
                   static_cast<size_t>(shard)];
  }
  int node_of(int gpu) const { return gpus[static_cast<size_t>(gpu)].node; }
};

constexpr int kMaxClusterGpus = 1024;

/// Reads a cluster file, strictly. Throws Error{kInvalidArgument} with file, line and key for the
/// first mistake: an unknown key, no trainer or no rollout GPU, more than kMaxClusterGpus, a rate
/// that is missing, a mesh that does not divide the trainers, or replicas that neither fit a node's
/// rollout GPUs a whole number of times nor take whole nodes. Error{kNotFound}: no such file.
ClusterSpec load_cluster(const std::filesystem::path& file);
/// The same of text called `name`.
ClusterSpec parse_cluster(std::string_view text, std::string_view name);

}  // namespace nibble
