#include "benchmarks/fanout_network.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "core/base/fail.h"

namespace nibble {
namespace {

// Ports in the order: NVLink out, NVLink in of each GPU; card out, card in of each GPU or node.
class Ports {
 public:
  explicit Ports(const ClusterSpec& cluster) : cluster_(cluster) {
    for (size_t i = 0; i < 2 * cluster.gpus.size(); ++i) {
      rates.push_back(cluster.links.nvlink_gb_per_s * 1e9);
    }
    const bool has_own = cluster.links.nic_of == NicScope::kGpu;
    for (size_t i = 0; i < 2 * (has_own ? cluster.gpus.size() : nodes()); ++i) {
      // A cluster of one node may have no card, which nothing then uses.
      rates.push_back(std::max(cluster.links.nic_gb_per_s * 1e9, 1.0));
    }
  }

  std::vector<int> path(int from, int to) const {
    const int from_node = cluster_.node_of(from), to_node = cluster_.node_of(to);
    if (from_node == to_node) return {2 * from, 2 * to + 1};
    const int cards = 2 * static_cast<int>(cluster_.gpus.size());
    const bool has_own = cluster_.links.nic_of == NicScope::kGpu;
    return {cards + 2 * (has_own ? from : from_node), cards + 2 * (has_own ? to : to_node) + 1};
  }

  std::vector<double> rates;

 private:
  size_t nodes() const { return static_cast<size_t>(cluster_.num_nodes); }
  const ClusterSpec& cluster_;
};

struct Arrival {
  int64_t begin = 0;
  int64_t end = 0;
  int chunk = 0;
};
using Stream = std::tuple<int, int, int>;  // GPU, trainer, shard

class Builder {
 public:
  explicit Builder(const ClusterSpec& cluster) : cluster_(cluster), ports_(cluster) {
    network_.link_bytes_per_s = ports_.rates;
  }

  SimNetwork build(const std::vector<FanoutEdge>& edges) {
    for (const FanoutEdge& edge : edges) {
      if (edge.from != edge.to) add(edge);
    }
    for (auto& [stream, arrivals] : arrivals_) {
      std::sort(arrivals.begin(), arrivals.end(),
                [](const Arrival& a, const Arrival& b) { return a.begin < b.begin; });
    }
    for (const Forward& forward : forwards_) wait(forward);
    return std::move(network_);
  }

 private:
  struct Forward {
    Stream source;
    Arrival range;
  };

  void add(const FanoutEdge& edge) {
    const int connection = static_cast<int>(network_.connections.size());
    network_.connections.push_back(ports_.path(edge.from, edge.to));
    for (const FanoutPiece& piece : edge.pieces) {
      const bool is_owned = cluster_.trainers[static_cast<size_t>(piece.trainer)] == edge.from;
      for (int64_t at = piece.begin; at < piece.end;) {
        const int64_t next = (at / cluster_.chunk_bytes + 1) * cluster_.chunk_bytes;
        const Arrival range = {at, std::min(next, piece.end),
                               static_cast<int>(network_.chunks.size())};
        network_.chunks.push_back({connection, range.end - range.begin, {}});
        arrivals_[{edge.to, piece.trainer, piece.shard}].push_back(range);
        if (!is_owned) forwards_.push_back({{edge.from, piece.trainer, piece.shard}, range});
        at = range.end;
      }
    }
  }

  void wait(const Forward& forward) {
    const std::vector<Arrival>& arrivals = arrivals_[forward.source];
    int64_t have = forward.range.begin;
    auto it = std::upper_bound(arrivals.begin(), arrivals.end(), have,
                               [](int64_t at, const Arrival& arrival) { return at < arrival.end; });
    for (; it != arrivals.end() && it->begin <= have && have < forward.range.end; ++it) {
      network_.chunks[static_cast<size_t>(forward.range.chunk)].after.push_back(it->chunk);
      have = it->end;
    }
    if (have < forward.range.end) {
      fail(ErrorCode::kInvalidArgument, "GPU {} forwards byte {} of trainer {}, but never gets it",
           std::get<0>(forward.source), have, std::get<1>(forward.source));
    }
  }

  const ClusterSpec& cluster_;
  Ports ports_;
  SimNetwork network_;
  std::map<Stream, std::vector<Arrival>> arrivals_;
  std::vector<Forward> forwards_;
};

}  // namespace

SimNetwork fanout_network(const ClusterSpec& cluster, const std::vector<FanoutEdge>& edges) {
  return Builder(cluster).build(edges);
}

}  // namespace nibble
