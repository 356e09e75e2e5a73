#include "weight_sync/fanout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "benchmarks/fanout_cases.h"
#include "benchmarks/fanout_network.h"
#include "benchmarks/link_simulator.h"
#include "core/base/error.h"
#include "tests/weight_sync/random_model.h"
#include "weight_sync/plan.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr double kGb = 1e9;

FanoutPlan plan_of(const ClusterSpec& cluster, const StoredModel& model, FanoutStrategy strategy) {
  return plan_fanout(cluster,
                     fanout_shares(model.manifest, model.table, cluster.mesh, cluster.replica_gpus),
                     strategy);
}

// Rates at which no time is hidden: NVLink 100 GB/s, a card of 10 GB/s for each GPU.
ClusterSpec round_rates(const std::string& nodes, int replica_gpus = 1,
                        int64_t chunk_bytes = 1'000'000'000) {
  return parse_cluster("nodes: " + nodes + "\nreplica_gpus: " + std::to_string(replica_gpus) +
                           "\nlinks: { nvlink_gb_per_s: 100, nic_gb_per_s: 10 }\nchunk_bytes: " +
                           std::to_string(chunk_bytes) + "\n",
                       "cluster.yaml");
}

TEST(FanoutShares, AreWhatThePlanOfEachReceiverSends) {
  RandomModels random(7);
  for (int round = 0; round < 30; ++round) {
    const RandomModel model = random.model();
    const Mesh mesh = random.mesh(model.config, 4);
    const int replica_gpus = static_cast<int>(random.draw(1, 5));
    const FanoutShares shares = fanout_shares(model.manifest, model.table, mesh, replica_gpus);
    const Layout trainers = trainer_layout(model.manifest, model.table, mesh);
    for (int shard = 0; shard < replica_gpus; ++shard) {
      std::vector<Slice> receiver;
      for (int64_t t = 0; t < model.manifest.size(); ++t) {
        const RowShard rows = row_shard(model.manifest.at(t).rows, shard, replica_gpus);
        if (rows.rows() > 0) receiver.push_back({t, rows.begin, rows.end});
      }
      const SyncPlan plan = make_plan({model.manifest, trainers, receiver});
      for (int n = 0; n < mesh.world; ++n) {
        const Edge* edge = plan.edge_of(n);
        EXPECT_EQ(shares.at(n, shard), edge == nullptr ? 0 : edge->bytes);
      }
    }
  }
}

// Two trainers with 6 and 4 GB, four replicas, every GPU in a node of its own.
TEST(PlanFanout, DirectIsBoundByTheOwnerWithMost) {
  const ClusterSpec cluster = round_rates("[{ count: 2, trainers: 1 }, { count: 4, rollout: 1 }]");
  const FanoutShares shares{2, 1, {6'000'000'000, 4'000'000'000}};
  const FanoutPlan plan = plan_fanout(cluster, shares, FanoutStrategy::kDirect);
  EXPECT_EQ(plan.edges.size(), 8u);
  EXPECT_DOUBLE_EQ(plan.bound_s, 4 * 6 / 10.0);
  EXPECT_DOUBLE_EQ(plan.expected_s, plan.bound_s);
  ASSERT_NE(plan.busiest(), nullptr);
  EXPECT_EQ(link_name(*plan.busiest(), NicScope::kGpu), "gpu 0 nic out");
}

// Two chains of two: an owner sends 2 x 6 GB, and a head passes on two first chunks of 1 GB.
TEST(PlanFanout, AChainAddsAChunkForEachOwnerAndHop) {
  const ClusterSpec cluster = round_rates("[{ count: 2, trainers: 1 }, { count: 4, rollout: 1 }]");
  const FanoutShares shares{2, 1, {6'000'000'000, 4'000'000'000}};
  const FanoutPlan plan = plan_fanout(cluster, shares, FanoutStrategy::kChain);
  EXPECT_EQ(plan.num_chains, 2);
  EXPECT_EQ(plan.longest_chain, 2);
  EXPECT_EQ(plan.edges.size(), 2u * 2 + 2);
  EXPECT_DOUBLE_EQ(plan.bound_s, 2 * 6 / 10.0);
  EXPECT_DOUBLE_EQ(plan.expected_s, 1.2 + 2 * 0.1);
}

// S / (G B) + (len - 1) chunk / B where one owner feeds the chain.
TEST(PlanFanout, AChainWithOneOwnerTakesItsTextbookTime) {
  for (int receivers = 1; receivers <= 8; ++receivers) {
    const ClusterSpec cluster =
        round_rates("[{ trainers: 1 }, { count: " + std::to_string(receivers) + ", rollout: 1 }]");
    const FanoutShares shares{1, 1, {20'000'000'000}};
    const FanoutPlan plan = plan_fanout(cluster, shares, FanoutStrategy::kChain);
    EXPECT_EQ(plan.longest_chain, receivers);
    EXPECT_NEAR(plan.expected_s, 2.0 + (receivers - 1) * 0.1, 1e-9);
    // All chunks are of one size, so this schedule has no slack at all.
    EXPECT_NEAR(simulate(fanout_network(cluster, plan.edges)), plan.expected_s, 1e-6);
    const FanoutPlan direct = plan_fanout(cluster, shares, FanoutStrategy::kDirect);
    EXPECT_NEAR(direct.expected_s, 2.0 * receivers, 1e-9);
  }
}

// max(S / (G B), R S / (N_t B)) where owners and shards have even parts.
TEST(PlanFanout, EvenSharesGiveTheFormulaOfDirect) {
  for (const int trainers : {2, 4, 8}) {
    for (const int replica_gpus : {1, 2, 4}) {
      for (const int replicas : {1, 2, 4}) {
        const ClusterSpec cluster =
            round_rates("[{ trainers: " + std::to_string(trainers) +
                            " }, { count: " + std::to_string(replicas) +
                            ", rollout: " + std::to_string(replica_gpus) + " }]",
                        replica_gpus);
        const int64_t cells = int64_t{trainers} * replica_gpus;
        const int64_t cell_bytes = 1'000'000'000;
        const FanoutShares shares{trainers, replica_gpus,
                                  std::vector<int64_t>(static_cast<size_t>(cells), cell_bytes)};
        const double model_gb = static_cast<double>(cells);
        const FanoutPlan plan = plan_fanout(cluster, shares, FanoutStrategy::kDirect);
        EXPECT_NEAR(
            plan.expected_s,
            std::max(model_gb / (replica_gpus * 10.0), replicas * model_gb / (trainers * 10.0)),
            1e-9);
      }
    }
  }
}

// The bars of one node at 380 GB/s, model and shares as they are: 18.03 GB.
TEST(PlanFanout, TheRealModelMeetsTheBoundsOfItsBars) {
  const StoredModel model = stored_model(qwen3_30b_a3b(), 128);
  EXPECT_NEAR(static_cast<double>(model.manifest.bytes) / kGb, 18.03, 0.01);
  const ClusterSpec apart =
      ClusterCase{.mixed = 1, .replica_gpus = 4, .expert = 4, .nvlink_gb_per_s = 380}.cluster();
  EXPECT_NEAR(plan_of(apart, model, FanoutStrategy::kDirect).bound_s * 1e3, 11.9, 0.1);
  const ClusterSpec colocated =
      ClusterCase{.colocated = 1, .expert = 8, .nvlink_gb_per_s = 380}.cluster();
  const FanoutPlan plan = plan_of(colocated, model, FanoutStrategy::kDirect);
  EXPECT_NEAR(static_cast<double>(plan.busiest()->bytes) / kGb, 15.75, 0.05);
  EXPECT_NEAR(plan.bound_s * 1e3, 41.5, 0.2);
}

std::vector<ClusterCase> many_clusters() {
  std::vector<ClusterCase> cases;
  for (const int64_t replica_gpus : {1, 2, 4}) {
    for (const char* nic_of : {"gpu", "node"}) {
      ClusterCase shape{.gpus = 4, .replica_gpus = replica_gpus, .nic_of = nic_of};
      shape.chunk_bytes = 256 << 10;
      for (const int64_t nodes : {1, 3}) {
        shape.rollout_nodes = nodes;
        cases.push_back(shape);
      }
      shape.colocated = 2;
      cases.push_back(shape);
      shape.colocated = 0;
      shape.gpus = 8;
      shape.mixed = 3;
      cases.push_back(shape);
    }
  }
  cases.push_back({.rollout_nodes = 4, .gpus = 4, .replica_gpus = 8, .chunk_bytes = 256 << 10});
  return cases;
}

// One sentence about the first stream that a rollout GPU does not get whole and once.
std::string problem_of(const ClusterSpec& cluster, const FanoutShares& shares,
                       const FanoutPlan& plan) {
  std::map<std::tuple<int, int, int>, std::vector<std::pair<int64_t, int64_t>>> got;
  for (const FanoutEdge& edge : plan.edges) {
    int64_t bytes = 0;
    for (const FanoutPiece& piece : edge.pieces) {
      got[{edge.to, piece.trainer, piece.shard}].push_back({piece.begin, piece.end});
      bytes += piece.end - piece.begin;
    }
    if (bytes != edge.bytes) return "an edge's pieces are not its bytes";
  }
  for (size_t place = 0; place < cluster.rollout.size(); ++place) {
    const int shard = static_cast<int>(place) % cluster.replica_gpus;
    for (int n = 0; n < shares.num_trainers; ++n) {
      auto it = got.find({cluster.rollout[place], n, shard});
      int64_t next = 0;
      if (it != got.end()) {
        std::sort(it->second.begin(), it->second.end());
        for (const auto& [begin, end] : it->second) {
          if (begin != next) return "a byte came twice or not at all";
          next = end;
        }
        got.erase(it);
      }
      if (next != shares.at(n, shard)) return "a stream's end is missing";
    }
  }
  return got.empty() ? "" : "a GPU got what it does not need";
}

TEST(PlanFanout, EveryRolloutGpuGetsEveryByteOnceFromSomebodyWhoHasIt) {
  const StoredModel model = stored_model(small_qwen3(), 32);
  for (const ClusterCase& shape : many_clusters()) {
    const ClusterSpec cluster = shape.cluster();
    const FanoutShares shares =
        fanout_shares(model.manifest, model.table, cluster.mesh, cluster.replica_gpus);
    for (const FanoutStrategy strategy : kFanoutStrategies) {
      SCOPED_TRACE(shape.name() + " " + std::string(fanout_name(strategy)));
      const FanoutPlan plan = plan_fanout(cluster, shares, strategy);
      EXPECT_EQ(problem_of(cluster, shares, plan), "");
      // Refuses what its sender never gets, and a circle.
      EXPECT_GE(simulate(fanout_network(cluster, plan.edges)), plan.bound_s * (1 - 1e-6));
    }
  }
}

TEST(PlanFanout, HierarchicalBringsOneCopyIntoEachNode) {
  const StoredModel model = stored_model(small_qwen3(), 32);
  const ClusterSpec cluster = ClusterCase{.rollout_nodes = 3, .nic_of = "node"}.cluster();
  const FanoutPlan plan = plan_of(cluster, model, FanoutStrategy::kHierarchical);
  for (const LinkLoad& link : plan.links) {
    if (link.link != LinkClass::kNic || link.is_out) continue;
    EXPECT_EQ(link.bytes, model.manifest.bytes);
  }
}

TEST(FanoutSimulation, AgreesWithTheFormulas) {
  const StoredModel model = stored_model(small_qwen3(), 32);
  for (const ClusterCase& shape : many_clusters()) {
    const ClusterSpec cluster = shape.cluster();
    for (const FanoutStrategy strategy : kFanoutStrategies) {
      const FanoutPlan plan = plan_of(cluster, model, strategy);
      EXPECT_NEAR(simulate(fanout_network(cluster, plan.edges)) / plan.expected_s, 1.0, 0.05)
          << shape.name() << " " << fanout_name(strategy);
    }
  }
}

TEST(LinkSimulator, SharesALinkFairlyAndGivesTheRestToOthers) {
  // Two connections share link 0 (10 B/s); the second also needs link 1 (2 B/s). So it gets 2, the
  // first 8: 80 bytes in 10 s, then the second's last 20 bytes, still at 2.
  SimNetwork network{{10.0, 2.0}, {{0}, {0, 1}}, {{0, 80, {}}, {1, 40, {}}}};
  EXPECT_DOUBLE_EQ(simulate(network), 20.0);
  network.chunks[1].bytes = 10;  // done after 5 s; the first then has the whole link
  EXPECT_DOUBLE_EQ(simulate(network), 5.0 + 40.0 / 10.0);
}

TEST(LinkSimulator, AChunkThatWaitsForItselfIsRefused) {
  const SimNetwork network{{1.0}, {{0}}, {{0, 1, {1}}, {0, 1, {0}}}};
  EXPECT_THROW(simulate(network), Error);
}

std::string refusal(const std::string& yaml) {
  try {
    parse_cluster(yaml, "c.yaml");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    return error.what();
  }
  return "not refused";
}

TEST(ClusterSpec, AMistakeIsRefusedByKey) {
  const std::string links = "links: { nvlink_gb_per_s: 380 }\n";
  const std::string node = "nodes: [{ trainers: 4, rollout: 4 }]\n";
  EXPECT_THAT(refusal(node + "links: { nvlink_gbs: 1 }\n"),
              HasSubstr("c.yaml:2: links.nvlink_gbs: unknown key"));
  EXPECT_THAT(refusal(node), HasSubstr("links.nvlink_gb_per_s: is not set"));
  EXPECT_THAT(refusal(node + "links: { nvlink_gb_per_s: 0 }\n"),
              HasSubstr("c.yaml:2: links.nvlink_gb_per_s"));
  EXPECT_THAT(refusal("nodes: [{ trainers: 4 }, { rollout: 4 }]\n" + links),
              HasSubstr("links.nic_gb_per_s: is not set, but there are 2 nodes"));
  EXPECT_THAT(refusal("nodes: [{ trainers: 4 }]\n" + links), HasSubstr("nodes: no GPU generates"));
  EXPECT_THAT(refusal("nodes: [{ count: 2 }]\n" + links), HasSubstr("nodes.0"));
  EXPECT_THAT(refusal("nodes: [{ count: 1024, colocated: 64 }]\n" + links),
              HasSubstr("more than 1024 GPUs"));
  EXPECT_THAT(refusal(node + links + "replica_gpus: 3\n"), HasSubstr("c.yaml:3: replica_gpus"));
  EXPECT_THAT(refusal(node + links + "replica_gpus: 8\n"),
              HasSubstr("the last replica has 4 of its 8 GPUs"));
  EXPECT_THAT(refusal(node + links + "trainer: { expert: 3 }\n"),
              HasSubstr("c.yaml:3: trainer.expert: 3 does not divide the 4 trainer GPUs"));
  EXPECT_THAT(refusal(node + links + "chunk_bytes: 1\n"), HasSubstr("chunk_bytes"));
}

TEST(ClusterSpec, NumbersGpusByNodeAndRole) {
  const ClusterSpec cluster = parse_cluster(
      "nodes:\n  - { count: 2, rollout: 1, trainers: 1, colocated: 1 }\n"
      "links: { nvlink_gb_per_s: 1, nic_gb_per_s: 1 }\n",
      "c.yaml");
  EXPECT_EQ(cluster.trainers, (std::vector<int>{0, 1, 3, 4}));
  EXPECT_EQ(cluster.rollout, (std::vector<int>{0, 2, 3, 5}));
  EXPECT_EQ(cluster.node_of(3), 1);
  EXPECT_EQ(cluster.num_replicas(), 4);
}

}  // namespace
}  // namespace nibble
