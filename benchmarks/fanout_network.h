#pragma once

#include <cstdint>
#include <vector>

#include "benchmarks/link_simulator.h"
#include "weight_sync/cluster_spec.h"
#include "weight_sync/fanout.h"

namespace nibble {

/// What simulate() takes for a fan-out: one connection an edge, over the two ports that it uses
/// (worked out here from the cluster, not taken from the plan), streams cut into chunks at
/// multiples of cluster.chunk_bytes. A forwarded chunk waits until its bytes have arrived; what a
/// GPU owns is there from the start. Throws Error{kInvalidArgument} if an edge sends bytes that its
/// sender neither owns nor gets.
SimNetwork fanout_network(const ClusterSpec& cluster, const std::vector<FanoutEdge>& edges);

}  // namespace nibble
