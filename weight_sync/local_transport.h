#pragma once

#include <memory>
#include <vector>

#include "weight_sync/transport.h"

namespace nibble {

/// The ends of a way inside one process. abort() of one end aborts all of them.
struct LocalTransports {
  std::vector<std::unique_ptr<Transport>> senders;  ///< by rank
  std::unique_ptr<Transport> receiver;
};

/// Moves bytes between threads, with at most two buckets of a sender in flight. The ends may be
/// destroyed in any order.
LocalTransports make_local_transports(int num_senders);

}  // namespace nibble
