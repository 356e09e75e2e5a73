// The formulas of weight_sync/fanout.h against a simulation of the same edges, chunk by chunk over
// fairly shared links (link_simulator.h), on a grid of clusters. Prints one JSON line a case;
// exit code 1 if any differ by more than 5 %.
//   build/cpu/bin/fanout_sim

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <vector>

#include <fmt/format.h>

#include "benchmarks/fanout_cases.h"
#include "benchmarks/fanout_network.h"
#include "benchmarks/figure.h"
#include "benchmarks/link_simulator.h"
#include "weight_sync/fanout.h"

namespace nibble {
namespace {

constexpr double kMostDifference = 0.05;

std::vector<ClusterCase> grid() {
  std::vector<ClusterCase> cases = {{.mixed = 1, .expert = 4},
                                    {.mixed = 1, .replica_gpus = 4, .expert = 4},
                                    {.mixed = 2, .replica_gpus = 4, .expert = 8},
                                    {.mixed = 2, .replica_gpus = 2, .expert = 1},
                                    {.mixed = 4, .expert = 8, .nic_of = "node"}};
  for (const int64_t rollout_nodes : {1, 2, 4, 8}) {
    for (const int64_t replica_gpus : {1, 2, 4, 8}) {
      cases.push_back({.rollout_nodes = rollout_nodes, .replica_gpus = replica_gpus, .expert = 8});
    }
    cases.push_back({.rollout_nodes = rollout_nodes,
                     .replica_gpus = 8,
                     .expert = 8,
                     .nic_gb_per_s = 25.0,
                     .nic_of = "node"});
  }
  for (const int64_t nodes : {1, 2, 4}) {
    cases.push_back({.colocated = nodes, .expert = 8});
    cases.push_back({.colocated = nodes, .replica_gpus = 4, .expert = 8});
  }
  for (const int64_t mebibytes : {4, 64}) {
    cases.push_back(
        {.rollout_nodes = 4, .replica_gpus = 8, .expert = 8, .chunk_bytes = mebibytes << 20});
  }
  cases.push_back({.trainer_nodes = 2, .rollout_nodes = 4, .replica_gpus = 16, .expert = 8});
  cases.push_back({.trainer_nodes = 4, .rollout_nodes = 2, .replica_gpus = 4, .expert = 8});
  cases.push_back({.trainer_nodes = 2, .rollout_nodes = 6, .replica_gpus = 8, .expert = 1});
  return cases;
}

// True if simulation and formula agree.
bool compare(const ClusterCase& shape, const StoredModel& model, const ClusterSpec& cluster,
             const FanoutPlan& plan) {
  const double simulated_s = simulate(fanout_network(cluster, plan.edges));
  const double ratio = simulated_s / plan.expected_s;
  const bool agrees = std::abs(ratio - 1.0) <= kMostDifference;
  Figure("fanout_sim")
      .set("cluster", shape.name())
      .set("strategy", fanout_name(plan.strategy))
      .set("trainers", cluster.trainers.size())
      .set("replicas", cluster.num_replicas())
      .set("model_bytes", model.manifest.bytes)
      .set("chunk_bytes", cluster.chunk_bytes)
      .set("edges", plan.edges.size())
      .set("chains", plan.num_chains)
      .set("longest_chain", plan.longest_chain)
      .number("bound_ms", plan.bound_s * 1e3)
      .number("formula_ms", plan.expected_s * 1e3)
      .number("simulated_ms", simulated_s * 1e3)
      .number("ratio", ratio)
      .set("agrees", agrees)
      .print();
  return agrees;
}

int run() {
  const StoredModel model = stored_model(qwen3_30b_a3b(), 128);
  int differing = 0;
  for (const ClusterCase& shape : grid()) {
    const ClusterSpec cluster = shape.cluster();
    const FanoutShares shares =
        fanout_shares(model.manifest, model.table, cluster.mesh, cluster.replica_gpus);
    for (const FanoutStrategy strategy : kFanoutStrategies) {
      if (!compare(shape, model, cluster, plan_fanout(cluster, shares, strategy))) ++differing;
    }
  }
  progress(fmt::format("{} cases differ by more than {:.0f} %", differing, kMostDifference * 100));
  return differing == 0 ? 0 : 1;
}

}  // namespace
}  // namespace nibble

int main() {
  try {
    return nibble::run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fanout_sim: %s\n", error.what());
    return 2;
  }
}
