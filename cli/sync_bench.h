#pragma once

#include <cstdint>

#include "cli/bench_layout.h"
#include "cli/planned_model.h"
#include "weight_sync/bucket_plan.h"

namespace nibble {

struct SyncBenchOptions {
  BenchLayout from;
  BenchLayout to;
  int rounds = 10;  ///< timed ones, after two that fill both of a receiver's buffers
  TransferSizes sizes;
};

/// Medians over the rounds; a round takes as long as its slowest rank.
struct SyncBenchResult {
  int num_receivers = 0;
  int64_t packed_bytes = 0;     ///< of all receivers' shards as they are stored
  int64_t bytes = 0;            ///< that receivers took from their groups, hashes included
  double publication_ms = 0.0;  ///< MOVE with hashes on both ends, VERIFY and PREPARE
  double wire_ms = 0.0;         ///< the transport alone, into other memory
  double raw_ms = 0.0;          ///< one raw Gloo send and receive of each edge's bytes
  double pause_ms = 0.0;        ///< of COMMIT
  double max_pause_ms = 0.0;    ///< of all rounds
  /// Growth of a receiver's memory, code left out, over its first publications, at its peak,
  /// beyond the two buffers of its shard; of the receiver where it is largest.
  int64_t peak_extra_bytes = 0;
  int64_t num_rounds = 0;
};

/// Publishes random weights of the model's shape between processes of this machine over loopback,
/// one per rank, one Gloo group per receiver. Every slice's hash is checked in every round. Throws
/// Error{kInvalidArgument} naming the flag whose ranks cannot share the model,
/// Error{kResourceExhausted} if memory is short, and what a rank throws, with its name. Before this
/// process starts threads.
SyncBenchResult run_sync_bench(const PlannedModel& model, const SyncBenchOptions& options);

}  // namespace nibble
