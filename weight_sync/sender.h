#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "core/kernels/weight_kernels.h"
#include "weight_sync/plan.h"
#include "weight_sync/stored_bytes.h"
#include "weight_sync/transaction.h"
#include "weight_sync/transport.h"

namespace nibble {

/// One rank that holds published weights: a trainer rank, or a worker that hands its version on.
/// Any thread may call any method; moves to several receivers may run at once, each over its own
/// transport.
class WeightSender {
 public:
  /// `rank` is this sender's in the plans. `kernels` must outlive this and be safe from several
  /// threads.
  WeightSender(int rank, Manifest manifest, const kernels::WeightKernels& kernels);

  /// Offers a version: `tensors`, one entry per manifest tensor, whose bytes live as long as
  /// `keep_alive` (shared: transfers in flight and the trainer hold one packing); those of frozen
  /// tensors are the same in every version. Versions rise;
  /// Error{kFailedPrecondition} otherwise, Error{kInvalidArgument} naming a tensor whose bytes and
  /// rows disagree.
  void publish(int64_t version, std::vector<LocalTensor> tensors,
               std::shared_ptr<const void> keep_alive);
  /// Drops the versions below `version`, once it is committed. Moves in flight keep theirs.
  void retire_before(int64_t version);

  /// MOVE: sends this rank's edge of `plan`, and says what was sent. Blocks until the bytes are on
  /// their way. Throws Error{kFailedPrecondition} for a stale epoch, a version (or a base) that is
  /// not held, or a plan with another digest; else as Transport::send. A rank without an edge
  /// reports no slices. What the transaction omits is reported all the same.
  SenderReport move(const Transaction& transaction, const SyncPlan& plan, Transport& transport,
                    Deadline deadline);

  /// Hashes of this rank's rows, one per manifest tensor (content_hashes). Throws
  /// Error{kFailedPrecondition} if the version is not published.
  std::vector<quant::ContentHash> content_hashes(int64_t version) const;

  const Manifest& manifest() const { return manifest_; }

 private:
  struct Version;
  class KnownHashes;
  class MoveHashes;
  std::shared_ptr<Version> version_at(int64_t version) const;
  void check_transaction(const Transaction& transaction, const SyncPlan& plan);
  int64_t send_delta(const TransferSizes& sizes, ConstPieces base, ConstPieces next,
                     Transport& transport, Deadline deadline) const;

  const int rank_;  // constant after construction, like the next two
  const Manifest manifest_;
  const kernels::WeightKernels& kernels_;
  const std::shared_ptr<KnownHashes> frozen_hashes_;  // shared: every version has them
  mutable std::mutex mutex_;
  int64_t last_version_ = 0;                              // guarded by mutex_
  int64_t epoch_ = 0;                                     // guarded by mutex_
  std::map<int64_t, std::shared_ptr<Version>> versions_;  // guarded by mutex_
};

}  // namespace nibble
