#include "weight_sync/fanout.h"

#include <algorithm>
#include <numeric>

#include "core/base/fail.h"
#include "weight_sync/fanout_edges.h"
#include "weight_sync/layout.h"

namespace nibble {
namespace {

constexpr double kBytesPerGb = 1e9;

// One entry a link that exists, those that carry something last.
class LinkLoads {
 public:
  explicit LinkLoads(const ClusterSpec& cluster) : cluster_(cluster) {
    const auto gpus = cluster.gpus.size();
    const auto cards =
        cluster.links.nic_of == NicScope::kGpu ? gpus : static_cast<size_t>(cluster.num_nodes);
    for (const bool is_out : {false, true}) {
      fill(bytes_of(LinkClass::kNvlink, is_out), gpus);
      fill(bytes_of(LinkClass::kNic, is_out), cards);
    }
  }

  void add(const FanoutEdge& edge) {
    if (edge.link == LinkClass::kLocal) return;
    bytes_of(edge.link, true)[place(edge.link, edge.from)] += edge.bytes;
    bytes_of(edge.link, false)[place(edge.link, edge.to)] += edge.bytes;
  }

  std::vector<LinkLoad> used() {
    std::vector<LinkLoad> used;
    for (const LinkClass link : {LinkClass::kNvlink, LinkClass::kNic}) {
      const double gb_per_s =
          link == LinkClass::kNvlink ? cluster_.links.nvlink_gb_per_s : cluster_.links.nic_gb_per_s;
      for (const bool is_out : {true, false}) {
        const std::vector<int64_t>& bytes = bytes_of(link, is_out);
        for (size_t i = 0; i < bytes.size(); ++i) {
          if (bytes[i] == 0) continue;
          used.push_back({link, is_out, static_cast<int>(i), bytes[i], gb_per_s * kBytesPerGb});
        }
      }
    }
    return used;
  }

 private:
  static void fill(std::vector<int64_t>& bytes, size_t count) { bytes.assign(count, 0); }
  std::vector<int64_t>& bytes_of(LinkClass link, bool is_out) {
    return bytes_[(link == LinkClass::kNic ? 2 : 0) + (is_out ? 1 : 0)];
  }
  size_t place(LinkClass link, int gpu) const {
    const bool is_shared = link == LinkClass::kNic && cluster_.links.nic_of == NicScope::kNode;
    return static_cast<size_t>(is_shared ? cluster_.node_of(gpu) : gpu);
  }

  const ClusterSpec& cluster_;
  std::array<std::vector<int64_t>, 4> bytes_;
};

void add_shares(const Manifest& manifest, const std::vector<Slice>& owned, int64_t* bytes,
                int num_shards) {
  for (const Slice& slice : owned) {
    const StoredTensor& tensor = manifest.at(slice.tensor);
    for (int shard = 0; shard < num_shards; ++shard) {
      const RowShard rows = row_shard(tensor.rows, shard, num_shards);
      const int64_t both =
          std::min(rows.end, slice.row_end) - std::max(rows.begin, slice.row_begin);
      if (both > 0) bytes[shard] += both * tensor.row_bytes();
    }
  }
}

}  // namespace

int64_t FanoutShares::total() const {
  return std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
}

FanoutShares fanout_shares(const Manifest& manifest, const ParameterTable& table, const Mesh& mesh,
                           int replica_gpus) {
  FanoutShares shares{mesh.world, replica_gpus, {}};
  shares.bytes.assign(static_cast<size_t>(mesh.world) * static_cast<size_t>(replica_gpus), 0);
  // Rank by rank: a large model's layout of a large cluster would be gigabytes.
  for (int rank = 0; rank < mesh.world; ++rank) {
    add_shares(manifest, owned_slices(manifest, table, mesh, rank),
               &shares.bytes[static_cast<size_t>(rank) * static_cast<size_t>(replica_gpus)],
               replica_gpus);
  }
  NIBBLE_CHECK(shares.total() == manifest.bytes, "{} of {} bytes have an owner and a shard",
               shares.total(), manifest.bytes);
  return shares;
}

std::string_view fanout_name(FanoutStrategy strategy) {
  switch (strategy) {
    case FanoutStrategy::kDirect:
      return "direct";
    case FanoutStrategy::kChain:
      return "chain";
    case FanoutStrategy::kHierarchical:
      return "hierarchical";
  }
  return "?";
}

std::string_view link_class_name(LinkClass link) {
  switch (link) {
    case LinkClass::kLocal:
      return "local";
    case LinkClass::kNvlink:
      return "nvlink";
    case LinkClass::kNic:
      return "nic";
  }
  return "?";
}

std::string link_name(const LinkLoad& link, NicScope nic_of) {
  const bool is_shared = link.link == LinkClass::kNic && nic_of == NicScope::kNode;
  return fmt::format("{} {} {} {}", is_shared ? "node" : "gpu", link.place,
                     link_class_name(link.link), link.is_out ? "out" : "in");
}

const LinkLoad* FanoutPlan::busiest() const {
  const auto it = std::max_element(
      links.begin(), links.end(),
      [](const LinkLoad& a, const LinkLoad& b) { return a.seconds() < b.seconds(); });
  return it == links.end() ? nullptr : &*it;
}

FanoutPlan plan_fanout(const ClusterSpec& cluster, const FanoutShares& shares,
                       FanoutStrategy strategy) {
  NIBBLE_CHECK(shares.num_trainers == std::ssize(cluster.trainers) &&
                   shares.num_shards == cluster.replica_gpus,
               "shares of {} trainers and {} shards for a cluster of {} and {}",
               shares.num_trainers, shares.num_shards, cluster.trainers.size(),
               cluster.replica_gpus);
  FanoutRoutes routes = fanout_routes(cluster, shares, strategy);
  FanoutPlan plan;
  plan.strategy = strategy;
  plan.edges = std::move(routes.edges);
  plan.num_chains = routes.num_chains;
  plan.longest_chain = routes.longest_chain;
  LinkLoads loads(cluster);
  for (const FanoutEdge& edge : plan.edges) loads.add(edge);
  plan.links = loads.used();
  double network_s = 0.0;
  for (const LinkLoad& link : plan.links) {
    plan.bound_s = std::max(plan.bound_s, link.seconds());
    if (link.link == LinkClass::kNic) network_s = std::max(network_s, link.seconds());
  }
  // Spreading inside nodes hides behind the network, or the network behind it.
  const double forwarded_s = strategy == FanoutStrategy::kHierarchical ? network_s : plan.bound_s;
  plan.expected_s = std::max(plan.bound_s, forwarded_s + routes.forward_s);
  return plan;
}

}  // namespace nibble
