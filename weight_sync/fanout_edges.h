#pragma once

#include <cstdint>
#include <vector>

#include "weight_sync/fanout.h"

namespace nibble {

/// Who sends what to whom, and what forwarding adds to the bound.
struct FanoutRoutes {
  std::vector<FanoutEdge> edges;
  int64_t num_chains = 1;
  int64_t longest_chain = 1;
  double forward_s = 0.0;
};

/// The routes of plan_fanout(). What a rollout GPU owns as a trainer is a local edge, whatever the
/// strategy.
FanoutRoutes fanout_routes(const ClusterSpec& cluster, const FanoutShares& shares,
                           FanoutStrategy strategy);

/// Chains that trainers can feed at once at the receivers' full rate: for kChain chains of replicas
/// (N_t / G), for kHierarchical of nodes; between 1 and the number of replicas or nodes.
int num_chains(const ClusterSpec& cluster, FanoutStrategy strategy);

}  // namespace nibble
