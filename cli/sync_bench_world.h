#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "cli/planned_model.h"
#include "cli/sync_bench.h"
#include "core/base/clock.h"
#include "weight_sync/layout.h"
#include "weight_sync/plan.h"
#include "weight_sync/transaction.h"

namespace nibble {

/// What every process of a benchmark knows before it is forked. The trainers have the first ranks
/// of the control group, then come the receivers.
struct SyncBenchWorld {
  /// `model` and `options` must outlive this.
  SyncBenchWorld(const PlannedModel& model, const SyncBenchOptions& options);

  int num_trainers() const { return trainers.world(); }
  int num_receivers() const { return receivers.world(); }
  int num_ranks() const { return num_trainers() + num_receivers(); }
  const SyncPlan& plan(int receiver) const { return plans[static_cast<size_t>(receiver)]; }
  Transaction transaction(int receiver, int64_t version) const {
    return {"bench", 1, version, plan(receiver).digest};
  }
  /// For one step of a round, at rates that no machine should be below.
  Deadline deadline() const { return Deadline::after(patience); }

  const PlannedModel& model;
  const SyncBenchOptions& options;
  Layout trainers;
  Layout receivers;             ///< by replica, then by rank of the engine
  std::vector<SyncPlan> plans;  ///< one per receiver
  int64_t packed_bytes = 0;
  std::chrono::milliseconds patience{0};
};

/// Both buffers of a receiver have been filled after these.
constexpr int kWarmUpRounds = 2;

/// Bodies of the processes, which meet at loopback's `port`. Ranks count within their side.
void run_bench_trainer(const SyncBenchWorld& world, int rank, int port);
/// Every receiver knows the result of all.
SyncBenchResult run_bench_receiver(const SyncBenchWorld& world, int rank, int port);

}  // namespace nibble
