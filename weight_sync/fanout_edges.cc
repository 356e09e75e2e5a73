#include "weight_sync/fanout_edges.h"

#include <algorithm>
#include <map>
#include <set>
#include <span>
#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr double kBytesPerGb = 1e9;

// Collects pieces into one edge for each pair of GPUs.
class Routes {
 public:
  Routes(const ClusterSpec& cluster, FanoutRoutes& out) : cluster_(cluster), out_(out) {}

  void send(int from, int to, const FanoutPiece& piece) {
    if (piece.begin == piece.end) return;
    if (owner(piece) == to) from = to;
    const auto [it, is_new] = index_.try_emplace({from, to}, out_.edges.size());
    if (is_new) out_.edges.push_back({from, to, link(from, to)});
    FanoutEdge& edge = out_.edges[it->second];
    edge.bytes += piece.end - piece.begin;
    edge.pieces.push_back(piece);
    largest_piece_ = std::max(largest_piece_, piece.end - piece.begin);
  }

  int owner(const FanoutPiece& piece) const {
    return cluster_.trainers[static_cast<size_t>(piece.trainer)];
  }

  LinkClass link(int from, int to) const {
    if (from == to) return LinkClass::kLocal;
    return cluster_.node_of(from) == cluster_.node_of(to) ? LinkClass::kNvlink : LinkClass::kNic;
  }

  // Seconds until a GPU has passed a whole chunk on, while `flows` of them share a node's card.
  double chunk_s(LinkClass link, int64_t flows) const {
    if (link == LinkClass::kLocal) return 0.0;
    const auto chunk = static_cast<double>(std::min(cluster_.chunk_bytes, largest_piece_));
    const LinkRates& rates = cluster_.links;
    if (link == LinkClass::kNvlink) return chunk / (rates.nvlink_gb_per_s * kBytesPerGb);
    const double sharing = rates.nic_of == NicScope::kNode ? static_cast<double>(flows) : 1.0;
    return chunk * sharing / (rates.nic_gb_per_s * kBytesPerGb);
  }

 private:
  const ClusterSpec& cluster_;
  FanoutRoutes& out_;
  std::map<std::pair<int, int>, size_t> index_;
  int64_t largest_piece_ = 0;
};

void route_direct(const ClusterSpec& cluster, const FanoutShares& shares, FanoutRoutes& out) {
  Routes routes(cluster, out);
  for (int replica = 0; replica < cluster.num_replicas(); ++replica) {
    for (int shard = 0; shard < shares.num_shards; ++shard) {
      for (int n = 0; n < shares.num_trainers; ++n) {
        routes.send(cluster.trainers[static_cast<size_t>(n)], cluster.gpu_of(replica, shard),
                    {n, shard, 0, shares.at(n, shard)});
      }
    }
  }
}

// First chunks, as many as whole ones would be, of the owners that send to a chain's head in `node`
// at once over the slower links. They share its link, so they arrive together; the slowest link
// behind lies idle until then and never catches up.
double first_chunks(const ClusterSpec& cluster, const FanoutShares& shares, int shard, int node) {
  int64_t most = 1, from_here = 0, from_elsewhere = 0;
  for (int n = 0; n < shares.num_trainers; ++n) {
    const int64_t first = std::min(cluster.chunk_bytes, shares.at(n, shard));
    const bool is_here = cluster.node_of(cluster.trainers[static_cast<size_t>(n)]) == node;
    (is_here ? from_here : from_elsewhere) += first;
    most = std::max(most, first);
  }
  return static_cast<double>(from_elsewhere > 0 ? from_elsewhere : from_here) /
         static_cast<double>(most);
}

// Neighbours in a chain are neighbours in the cluster, so that a chain leaves a node once.
void route_chains(const ClusterSpec& cluster, const FanoutShares& shares, FanoutRoutes& out) {
  Routes routes(cluster, out);
  const int chains = static_cast<int>(out.num_chains);
  for (int chain = 0; chain < chains; ++chain) {
    const RowShard replicas = row_shard(cluster.num_replicas(), chain, chains);
    out.longest_chain = std::max(out.longest_chain, replicas.rows());
    for (int shard = 0; shard < shares.num_shards; ++shard) {
      double forward_s = 0.0, slowest_s = 0.0;
      for (int64_t r = replicas.begin; r < replicas.end; ++r) {
        const int to = cluster.gpu_of(static_cast<int>(r), shard);
        const bool is_head = r == replicas.begin;
        const int previous = is_head ? -1 : cluster.gpu_of(static_cast<int>(r) - 1, shard);
        for (int n = 0; n < shares.num_trainers; ++n) {
          routes.send(is_head ? cluster.trainers[static_cast<size_t>(n)] : previous, to,
                      {n, shard, 0, shares.at(n, shard)});
        }
        if (is_head) continue;
        const double hop_s = routes.chunk_s(routes.link(previous, to), shares.num_shards);
        forward_s += hop_s;
        slowest_s = std::max(slowest_s, hop_s);
      }
      const int head = cluster.node_of(cluster.gpu_of(static_cast<int>(replicas.begin), shard));
      forward_s += (first_chunks(cluster, shares, shard, head) - 1.0) * slowest_s;
      out.forward_s = std::max(out.forward_s, forward_s);
    }
  }
}

// The GPUs of a node that hold a shard, and what each of them brings into the node.
struct NodeHolders {
  int node = 0;
  std::vector<int> gpus;
};

std::vector<NodeHolders> holders_of(const ClusterSpec& cluster, int shard) {
  std::vector<NodeHolders> nodes;
  for (int replica = 0; replica < cluster.num_replicas(); ++replica) {
    const int gpu = cluster.gpu_of(replica, shard);
    if (nodes.empty() || nodes.back().node != cluster.node_of(gpu)) {
      nodes.push_back({cluster.node_of(gpu), {}});
    }
    nodes.back().gpus.push_back(gpu);
  }
  return nodes;
}

// A part of a stream and the GPU of a node that has it first.
struct FirstHolder {
  int gpu = 0;
  FanoutPiece part;
};

class NodeRoutes {
 public:
  NodeRoutes(const ClusterSpec& cluster, const FanoutShares& shares, Routes& routes)
      : cluster_(cluster), shares_(shares), routes_(routes) {}

  // Brings one copy of a shard into `node` and spreads it there. `before` says who has it in the
  // node before it in the chain; at a chain's head it is empty. Returns the same of `node`.
  std::vector<std::vector<FirstHolder>> feed(const NodeHolders& node, int shard,
                                             const std::vector<std::vector<FirstHolder>>& before) {
    std::vector<std::vector<FirstHolder>> first(static_cast<size_t>(shares_.num_trainers));
    for (int n = 0; n < shares_.num_trainers; ++n) {
      const auto stream = static_cast<size_t>(n);
      const FanoutPiece whole = {n, shard, 0, shares_.at(n, shard)};
      const int owner = routes_.owner(whole);
      first[stream] = split(node, owner, whole);
      const bool is_here = cluster_.node_of(owner) == node.node;
      for (const FirstHolder& holder : first[stream]) {
        if (is_here || before.empty()) {
          routes_.send(owner, holder.gpu, holder.part);
        } else {
          receive(before[stream], holder);
        }
        for (const int gpu : node.gpus) {
          if (gpu != holder.gpu) routes_.send(holder.gpu, gpu, holder.part);
        }
      }
    }
    return first;
  }

  // Seconds of one chunk's hop from node to node, all GPUs of which are sent to at once.
  double hop_s(const NodeHolders& node) const {
    return routes_.chunk_s(LinkClass::kNic, std::ssize(node.gpus) * shares_.num_shards);
  }

 private:
  // Even parts, unless one of the holders is the owner and so has everything.
  static std::vector<FirstHolder> split(const NodeHolders& node, int owner,
                                        const FanoutPiece& whole) {
    if (std::find(node.gpus.begin(), node.gpus.end(), owner) != node.gpus.end()) {
      return {{owner, whole}};
    }
    std::vector<FirstHolder> parts;
    const int count = static_cast<int>(node.gpus.size());
    for (int i = 0; i < count; ++i) {
      const RowShard bytes = row_shard(whole.end, i, count);
      parts.push_back({node.gpus[static_cast<size_t>(i)],
                       {whole.trainer, whole.shard, bytes.begin, bytes.end}});
    }
    return parts;
  }

  void receive(const std::vector<FirstHolder>& before, const FirstHolder& holder) {
    for (const FirstHolder& source : before) {
      FanoutPiece both = holder.part;
      both.begin = std::max(both.begin, source.part.begin);
      both.end = std::min(both.end, source.part.end);
      if (both.begin < both.end) routes_.send(source.gpu, holder.gpu, both);
    }
  }

  const ClusterSpec& cluster_;
  const FanoutShares& shares_;
  Routes& routes_;
};

// One chain of nodes, whose head gets `chunks` at once; returns what forwarding adds.
double route_node_chain(std::span<const NodeHolders> nodes, int shard, double chunks,
                        Routes& routes, NodeRoutes& node_routes) {
  std::vector<std::vector<FirstHolder>> before;
  double forward_s = 0.0;  // until a node has its copy
  double longest_s = 0.0;
  for (size_t i = 0; i < nodes.size(); ++i) {
    before = node_routes.feed(nodes[i], shard, before);
    if (i > 0) {
      forward_s += chunks * node_routes.hop_s(nodes[i]);
      chunks = 1.0;
    }
    const double spread_s = chunks * static_cast<double>(std::ssize(nodes[i].gpus) - 1) *
                            routes.chunk_s(LinkClass::kNvlink, 1);
    longest_s = std::max(longest_s, forward_s + spread_s);
  }
  return longest_s;
}

void route_nodes(const ClusterSpec& cluster, const FanoutShares& shares, FanoutRoutes& out) {
  Routes routes(cluster, out);
  NodeRoutes node_routes(cluster, shares, routes);
  const int chains = static_cast<int>(out.num_chains);
  for (int shard = 0; shard < shares.num_shards; ++shard) {
    const std::vector<NodeHolders> nodes = holders_of(cluster, shard);
    for (int chain = 0; chain < chains; ++chain) {
      const RowShard places = row_shard(std::ssize(nodes), chain, chains);
      out.longest_chain = std::max(out.longest_chain, places.rows());
      const auto chained = std::span(nodes).subspan(static_cast<size_t>(places.begin),
                                                    static_cast<size_t>(places.rows()));
      const double chunks = first_chunks(cluster, shares, shard, chained.front().node);
      out.forward_s =
          std::max(out.forward_s, route_node_chain(chained, shard, chunks, routes, node_routes));
    }
  }
}

int64_t num_nodes_with(const ClusterSpec& cluster, const std::vector<int>& gpus) {
  std::set<int> nodes;
  for (const int gpu : gpus) nodes.insert(cluster.node_of(gpu));
  return std::ssize(nodes);
}

// Nodes, each fed at the full rate of its network cards, that the trainers' cards can feed.
int num_node_chains(const ClusterSpec& cluster) {
  const int64_t nodes = num_nodes_with(cluster, cluster.rollout);
  const int64_t shard_nodes = std::ssize(holders_of(cluster, 0));
  const int64_t nodes_of_copy = std::max<int64_t>(1, nodes / shard_nodes);
  const int64_t cards_out = cluster.links.nic_of == NicScope::kNode
                                ? num_nodes_with(cluster, cluster.trainers)
                                : std::ssize(cluster.trainers);
  const int64_t cards_in = cluster.links.nic_of == NicScope::kNode
                               ? nodes_of_copy
                               : std::ssize(cluster.rollout) * nodes_of_copy / nodes;
  return static_cast<int>(
      std::clamp<int64_t>(cards_out / std::max<int64_t>(1, cards_in), 1, shard_nodes));
}

}  // namespace

FanoutRoutes fanout_routes(const ClusterSpec& cluster, const FanoutShares& shares,
                           FanoutStrategy strategy) {
  FanoutRoutes out;
  out.num_chains = num_chains(cluster, strategy);
  switch (strategy) {
    case FanoutStrategy::kDirect:
      route_direct(cluster, shares, out);
      break;
    case FanoutStrategy::kChain:
      route_chains(cluster, shares, out);
      break;
    case FanoutStrategy::kHierarchical:
      route_nodes(cluster, shares, out);
      break;
  }
  return out;
}

int num_chains(const ClusterSpec& cluster, FanoutStrategy strategy) {
  switch (strategy) {
    case FanoutStrategy::kDirect:
      return cluster.num_replicas();
    case FanoutStrategy::kChain:
      return std::clamp(static_cast<int>(cluster.trainers.size()) / cluster.replica_gpus, 1,
                        cluster.num_replicas());
    case FanoutStrategy::kHierarchical:
      return num_node_chains(cluster);
  }
  fail(ErrorCode::kInternal, "no such strategy");
}

}  // namespace nibble
