#pragma once

#include <memory>
#include <string>
#include <vector>

#include "benchmarks/pair_member.h"
#include "core/models/decoder.h"
#include "core/models/weights.h"
#include "weight_sync/plan.h"
#include "weight_sync/receiver.h"
#include "weight_sync/sender.h"

namespace nibble {

constexpr int kSenderRank = 0;
constexpr int kReceiverRank = 1;

/// One trainer rank that publishes a whole model to one engine: both sides compute the same.
struct PairWorld {
  PairWorld(const std::string& model_name, int64_t group_size);
  SyncPlan plan(int64_t bucket_bytes, int64_t epoch = 1) const;
  Transaction transaction(const SyncPlan& plan, int64_t version, int64_t epoch = 1) const {
    return {"pair", epoch, version, plan.digest};
  }

  const std::string model;
  const int64_t group;
  const ModelSpec spec;
  const QuantizationPlan quantization;
  const Manifest manifest;
  const Layout layout;
};

/// Transfers that GroupTransport makes of the plan's one edge.
int64_t num_transfers(const SyncPlan& plan);

/// The way between the two: weights, and what is said about them.
struct PairGroups {
  PairGroups(const Member& member, const std::string& name, int rank)
      : weights(member.join(name, rank, 2)), host(member.join_host(name, rank, 2)) {}
  std::unique_ptr<ProcessGroup> weights;
  std::unique_ptr<ProcessGroup> host;
};

/// Offers all rows of `weights` as `version` and, once the receiver is there, moves them over
/// `weights_group` and reports; returns the bytes that went. The deadline is the move's.
int64_t send_version(const PairWorld& world, WeightSender& sender,
                     const std::shared_ptr<ResidentWeights>& weights,
                     const Transaction& transaction, const SyncPlan& plan, Transport& transport,
                     ProcessGroup& host, Deadline deadline);

/// What the steps of a transaction took on the receiver.
struct ReceivedVersion {
  ServedWeights served;
  SteadyClock::time_point begin, end;  ///< of the move
  double move_ms = 0.0;                ///< wire and hashes
  double verify_ms = 0.0;              ///< the report, and the comparison with it
  double commit_ms = 0.0;
};
/// The other side: RESERVE to COMMIT.
ReceivedVersion receive_version(WeightReceiver& receiver, const Transaction& transaction,
                                const SyncPlan& plan, Transport& transport, ProcessGroup& host,
                                Deadline deadline);

/// Hashes travel as they lie in memory.
void send_hashes(ProcessGroup& host, std::span<const quant::ContentHash> hashes);
std::vector<quant::ContentHash> receive_hashes(ProcessGroup& host, size_t count);

}  // namespace nibble
