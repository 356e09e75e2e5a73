#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/spec/mesh.h"
#include "core/spec/parameters.h"
#include "weight_sync/cluster_spec.h"
#include "weight_sync/manifest.h"

namespace nibble {

/// Bytes of the stored model by the trainer rank that owns them and the shard that needs them. The
/// bytes of one cell are a stream: everybody who holds that shard gets all of it, in order.
struct FanoutShares {
  int num_trainers = 0;
  int num_shards = 0;
  std::vector<int64_t> bytes;  ///< by trainer, then by shard

  int64_t at(int trainer, int shard) const {
    return bytes[static_cast<size_t>(trainer) * static_cast<size_t>(num_shards) +
                 static_cast<size_t>(shard)];
  }
  int64_t total() const;
};

/// Trainers own what trainer_layout() gives them; a replica's GPUs take even parts of the rows of
/// every stored tensor (row_shard), a vector going to one of them. Engines that keep norms on every
/// GPU, or whole experts, need a few bytes more, or the same bytes elsewhere.
FanoutShares fanout_shares(const Manifest& manifest, const ParameterTable& table, const Mesh& mesh,
                           int replica_gpus);

/// How the bytes get from trainers to replicas.
enum class FanoutStrategy {
  kDirect,        ///< owners send to every replica
  kChain,         ///< owners send to the first replica of each chain, each forwards to the next
  kHierarchical,  ///< one copy into each node, node to node in chains; inside it over NVLink
};
inline constexpr std::array kFanoutStrategies = {FanoutStrategy::kDirect, FanoutStrategy::kChain,
                                                 FanoutStrategy::kHierarchical};
std::string_view fanout_name(FanoutStrategy strategy);

enum class LinkClass {
  kLocal,   ///< owner and receiver are one GPU: nothing travels
  kNvlink,  ///< in one node
  kNic,     ///< between nodes
};
std::string_view link_class_name(LinkClass link);

/// Bytes [begin, end) of a stream.
struct FanoutPiece {
  int trainer = 0;
  int shard = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

/// What one GPU sends another, owned or forwarded.
struct FanoutEdge {
  int from = 0;
  int to = 0;
  LinkClass link = LinkClass::kLocal;
  int64_t bytes = 0;
  std::vector<FanoutPiece> pieces;
};

/// One direction of a GPU's NVLink or of a network card.
struct LinkLoad {
  LinkClass link = LinkClass::kNvlink;
  bool is_out = false;
  int place = 0;  ///< the GPU, or the node whose GPUs share the card
  int64_t bytes = 0;
  double bytes_per_s = 0.0;

  double seconds() const { return static_cast<double>(bytes) / bytes_per_s; }
};
/// "gpu 3 nvlink out", "node 1 nic in".
std::string link_name(const LinkLoad& link, NicScope nic_of);

struct FanoutPlan {
  FanoutStrategy strategy = FanoutStrategy::kDirect;
  std::vector<FanoutEdge> edges;
  std::vector<LinkLoad> links;  ///< those that carry something
  int64_t num_chains = 1;       ///< fed by owners side by side
  int64_t longest_chain = 1;    ///< holders after one another: replicas, or nodes
  double bound_s = 0.0;         ///< no schedule of these edges is faster: max bytes / rate
  double expected_s = 0.0;      ///< with what forwarding whole chunks adds

  /// The one that makes the bound, or nullptr if nothing travels.
  const LinkLoad* busiest() const;
};

/// Every rollout GPU gets every byte of its shard exactly once. Pure. Expected time: the bound,
/// plus (F + len - 2) chunk / B in a chain of len >= 2 whose head F owners feed at once
/// (docs/weight_sync_protocol.md, "Fan-out"). That holds where chunks are small beside what a link
/// carries. `shares` are of `cluster.mesh` and `cluster.replica_gpus`.
FanoutPlan plan_fanout(const ClusterSpec& cluster, const FanoutShares& shares,
                       FanoutStrategy strategy);

}  // namespace nibble
