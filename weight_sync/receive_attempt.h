#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/kernels/weight_kernels.h"
#include "core/models/weights.h"
#include "weight_sync/frozen_rows.h"
#include "weight_sync/hash_batch.h"
#include "weight_sync/packed_store.h"
#include "weight_sync/plan.h"
#include "weight_sync/transaction.h"
#include "weight_sync/transport.h"

namespace nibble {

/// What a receiver receives into: constant while it lives, and all borrowed from it.
struct ReceivingEnd {
  const Manifest& manifest;
  const ParameterTable& table;
  const QuantizationPlan& plan;
  const std::vector<Slice>& destination;
  const kernels::WeightKernels& kernels;
  const std::optional<int>& own_sender;  ///< in this process; its rows do not travel
};

/// The bytes of one transaction at a receiver: where they go, what came, and whether it is what was
/// sent. Knows no states. One thread fills it; any may ask arrived_bytes().
class ReceiveAttempt {
 public:
  /// `base`: what is served, if the transaction is a delta; null: it is in the shadow already.
  ReceiveAttempt(const ReceivingEnd& end, const Transaction& transaction, SyncPlan plan,
                 std::shared_ptr<const ResidentWeights> base);

  /// The plan's only sender is the own one: nothing travels, and its packing itself is served.
  bool is_flip() const;
  /// Where bytes go from now on; not for a flip. `frozen`: rows of `shadow`'s table, which get
  /// those bytes that are the same in every version, or have them if the transaction omits them;
  /// null if there are none. Kept as long as what was filled is.
  void set_shadow(std::shared_ptr<ResidentWeights> shadow, std::shared_ptr<FrozenRows> frozen);

  /// The own sender's rows, copied and hashed; in a flip taken as they are.
  void take_held(const HeldPacking& held);
  /// The other senders' rows, hashed as they arrive. Throws as Transport::receive, and
  /// Error{kDataLoss} for a delta that is none.
  void receive(Transport& transport, Deadline deadline);

  /// Compares with what the senders say they sent; returns one hash per manifest tensor. Throws
  /// Error{kDataLoss} naming tensor and rows if a slice differs or the destination is not covered
  /// exactly once.
  std::vector<quant::ContentHash> verify(std::span<const SenderReport> reports) const;

  /// Of a transaction that was verified: what no later one needs to bring; null in a flip, or if
  /// there is nothing.
  std::shared_ptr<FrozenRows> frozen() const;
  /// What was filled, or taken.
  std::shared_ptr<const ResidentWeights> take_weights() { return std::move(weights_); }
  const Transaction& transaction() const { return transaction_; }
  int64_t arrived_bytes() const { return arrived_bytes_; }
  int64_t expected_bytes() const { return expected_bytes_; }

 private:
  void hash_omitted(HashBatch& hashes);
  void hash(HashBatch& hashes, size_t edge, const Segment& segment,
            std::span<const std::byte> piece);
  void receive_delta(std::span<const size_t> edges, Transport& transport, HashBatch& hashes,
                     Deadline deadline);
  void check_report(size_t edge_index, std::span<const SenderReport> reports) const;

  const ReceivingEnd end_;
  const Transaction transaction_;
  const SyncPlan plan_;
  std::shared_ptr<const ResidentWeights> base_;
  std::shared_ptr<ResidentWeights> shadow_;         // null in a flip
  std::shared_ptr<const ResidentWeights> weights_;  // the shadow, or what a flip took
  std::shared_ptr<FrozenRows> frozen_;              // what the shadow has views of; or null
  // Memory of the shadow that is to be filled, in plan order; in a flip no pieces.
  std::vector<IncomingEdge> edges_;
  std::vector<std::vector<size_t>> travelling_;          // slices of each edge that do, in order
  std::vector<std::vector<quant::ContentHash>> hashes_;  // of every slice of an edge
  int64_t expected_bytes_ = 0;
  std::atomic<int64_t> arrived_bytes_ = 0;
};

}  // namespace nibble
