#include "weight_sync/cluster_spec.h"

#include <string>
#include <utility>

#include "core/base/fail.h"
#include "core/config/config.h"

namespace nibble {
namespace {

std::string group_key(size_t group) { return fmt::format("nodes.{}", group); }

// For checks that no single key can do. A key that the file leaves out has no line.
template <typename... Args>
[[noreturn]] void refuse(const ConfigSource& source, std::string_view file, std::string_view key,
                         fmt::format_string<Args...> format, Args&&... args) {
  const std::string place = source.is_set(key) ? source.where(key) : std::string(file);
  fail(ErrorCode::kInvalidArgument, "{}: {}: {}", place, key,
       fmt::format(format, std::forward<Args>(args)...));
}

void add_node(const NodeGroup& group, ClusterSpec& cluster) {
  const auto add = [&cluster](int64_t count, bool trains, bool serves) {
    for (int64_t i = 0; i < count; ++i) {
      const int gpu = static_cast<int>(cluster.gpus.size());
      ClusterGpu& added = cluster.gpus.emplace_back();
      added.node = cluster.num_nodes;
      if (trains) {
        added.trainer_rank = static_cast<int>(cluster.trainers.size());
        cluster.trainers.push_back(gpu);
      }
      if (serves) {
        added.rollout_place = static_cast<int>(cluster.rollout.size());
        cluster.rollout.push_back(gpu);
      }
    }
  };
  add(group.colocated, true, true);
  add(group.trainers, true, false);
  add(group.rollout, false, true);
  ++cluster.num_nodes;
}

// Every replica lies in one node or has all rollout GPUs of its nodes, so that a node's network
// card never serves parts of two replicas that the strategies would have to tell apart.
void check_replicas(const ClusterConfig& config, const ConfigSource& source,
                    std::string_view file) {
  const int64_t size = config.replica_gpus;
  int64_t missing = 0;  // of a replica that has begun
  for (size_t g = 0; g < config.nodes.size(); ++g) {
    const NodeGroup& group = config.nodes[g];
    const int64_t here = group.rollout + group.colocated;
    for (int64_t n = 0; here > 0 && n < group.count; ++n) {
      if (missing == 0 && here % size == 0) continue;
      if (missing == 0) missing = size;
      if (here > missing || size % here != 0) {
        refuse(source, file, "replica_gpus",
               "replicas of {} GPUs neither fit the {} rollout GPUs of a node of {} a whole number "
               "of times nor take whole nodes",
               size, here, group_key(g));
      }
      missing -= here;
    }
  }
  if (missing > 0) {
    refuse(source, file, "replica_gpus", "the last replica has {} of its {} GPUs", size - missing,
           size);
  }
}

void check_mesh(const ClusterConfig& config, const ConfigSource& source, std::string_view file,
                int64_t trainers) {
  for (const auto& [key, ranks] : {std::pair("trainer.tensor", config.trainer.tensor),
                                   std::pair("trainer.expert", config.trainer.expert)}) {
    if (trainers % ranks != 0) {
      refuse(source, file, key, "{} does not divide the {} trainer GPUs", ranks, trainers);
    }
  }
}

void check_rates(const ClusterConfig& config, const ConfigSource& source, std::string_view file,
                 int num_nodes) {
  if (config.links.nvlink_gb_per_s <= 0.0) {
    refuse(source, file, "links.nvlink_gb_per_s", "is not set; give the attained rate of one GPU");
  }
  if (num_nodes > 1 && config.links.nic_gb_per_s <= 0.0) {
    refuse(source, file, "links.nic_gb_per_s", "is not set, but there are {} nodes", num_nodes);
  }
}

ClusterSpec make_cluster(const LoadedConfig<ClusterConfig>& loaded, std::string_view file) {
  const ClusterConfig& config = loaded.config;
  ClusterSpec cluster;
  for (size_t g = 0; g < config.nodes.size(); ++g) {
    const NodeGroup& group = config.nodes[g];
    if (group.trainers + group.rollout + group.colocated == 0) {
      refuse(loaded.source, file, group_key(g), "a node needs trainers, rollout or colocated GPUs");
    }
    for (int64_t n = 0; n < group.count; ++n) {
      add_node(group, cluster);
      if (std::ssize(cluster.gpus) > kMaxClusterGpus) {
        refuse(loaded.source, file, group_key(g), "the cluster has more than {} GPUs",
               kMaxClusterGpus);
      }
    }
  }
  if (cluster.trainers.empty() || cluster.rollout.empty()) {
    refuse(loaded.source, file, "nodes",
           "no GPU {}: list nodes with `trainers` and `rollout`, "
           "or with `colocated`",
           cluster.trainers.empty() ? "trains" : "generates");
  }
  check_replicas(config, loaded.source, file);
  check_mesh(config, loaded.source, file, std::ssize(cluster.trainers));
  check_rates(config, loaded.source, file, cluster.num_nodes);
  cluster.replica_gpus = static_cast<int>(config.replica_gpus);
  cluster.mesh = {static_cast<int>(cluster.trainers.size()),
                  static_cast<int>(config.trainer.tensor), static_cast<int>(config.trainer.expert)};
  cluster.links = config.links;
  cluster.chunk_bytes = config.chunk_bytes;
  return cluster;
}

}  // namespace

ClusterSpec load_cluster(const std::filesystem::path& file) {
  return make_cluster(load_config<ClusterConfig>(file), file.string());
}

ClusterSpec parse_cluster(std::string_view text, std::string_view name) {
  return make_cluster(parse_config<ClusterConfig>(text, name), name);
}

}  // namespace nibble
