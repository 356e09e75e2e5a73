#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/kernels/weight_kernels.h"
#include "weight_sync/frozen_rows.h"
#include "weight_sync/packed_store.h"
#include "weight_sync/plan.h"
#include "weight_sync/shadow_pool.h"
#include "weight_sync/transaction.h"
#include "weight_sync/transport.h"

namespace nibble {

class ReceiveAttempt;

enum class ReceiverState {
  kStale,     ///< has no version yet and serves nothing
  kIdle,      ///< serves a version, no transaction
  kReserved,  ///< a shadow is set aside
  kMoving,    ///< the shadow is being filled, or is full and not yet verified
  kVerified,  ///< what arrived is what was sent
  kPrepared,  ///< promised to commit; only commit() or abort() may follow
  kPoisoned,  ///< in place: the buffer is in part written and nothing is served
};
std::string_view receiver_state_name(ReceiverState state);

/// What the engine serves; `weights` is null while stale.
struct ServedWeights {
  std::shared_ptr<const ResidentWeights>
      weights;  // shared: sequences in flight keep an old version
  int64_t version = 0;
  /// One hash per manifest tensor: sums of those that the senders reported and VERIFY compared.
  std::shared_ptr<const std::vector<quant::ContentHash>>
      tensor_hashes;  // shared: a look at what is served copies no list
};

/// One look at a receiver, for `nibble status`.
struct ReceiverStatus {
  ReceiverState state = ReceiverState::kStale;
  int64_t served_version = 0;              ///< 0: none
  int64_t epoch = 0;                       ///< highest seen
  std::optional<Transaction> transaction;  ///< in flight
  int64_t arrived_bytes = 0;               ///< of the transaction in flight
  int64_t expected_bytes = 0;
  int num_buffers = 0;
  std::string last_failure;  ///< why the last transaction that failed here did
};

struct ReceiverOptions {
  /// The sender of the plans that lives in this process; its rows do not travel.
  std::optional<int> own_sender;
  /// What this rank of an engine of several holds (engine_slices); at most one slice a tensor.
  /// Nothing: the whole model.
  std::vector<Slice> destination;
  /// Set: weights are received in place, in the only buffer there is. Called when the first byte is
  /// about to arrive: the engine, and whoever else holds the served weights, must let go of them.
  std::function<void()> release_engine;
};

/// A rollout worker's side of weight publication. It fills a shadow while the served version is in
/// use, and swaps by moving a pointer:
///
///   STALE or IDLE -> RESERVED -> MOVING -> VERIFIED -> PREPARED -> IDLE with the new version
///
/// A failed receive() or verify(), or abort(), leads back to STALE or IDLE with the version served
/// before; the shadow is reused. In place there is no shadow and no way back: from MOVING on
/// nothing is served; what fails before it is verified leads to POISONED, after that to STALE, and
/// a later transaction out of both; it may bring the version again that was served last. Calls that
/// do not fit the state or the transaction in flight throw Error{kFailedPrecondition} saying why
/// and change nothing. Repeating reserve(), verify(), prepare(), commit() or abort() of the same
/// transaction has no further effect, so that a lost answer can be asked for again. Any thread may
/// call any method.
class WeightReceiver {
 public:
  /// `table` must outlive this and all weights it gave out, `kernels` this.
  WeightReceiver(std::string job, const ParameterTable& table, QuantizationPlan plan,
                 Manifest manifest, const kernels::WeightKernels& kernels,
                 ReceiverOptions options = {});

  /// Sets a shadow aside for `transaction`, whose plan this side computed as `plan`. Refused: a
  /// base version that is not served, leaving out what this does not have (has_frozen()), a lower
  /// epoch, a version not above the served one, another plan digest, another transaction in
  /// flight, unless this one's version or epoch is later and no bytes are arriving: then that one
  /// is over. Error{kResourceExhausted} while both buffers are held. A plan of the own sender alone
  /// needs no shadow; in place none is set aside.
  void reserve(const Transaction& transaction, SyncPlan plan);
  /// Fills the shadow and hashes what arrives; in place, once all have let go of the buffer.
  /// Blocks; abort() from another thread ends it with Error{kUnavailable}. Otherwise throws as
  /// Transport::receive, and the transaction is over.
  void receive(const Transaction& transaction, Transport& transport, Deadline deadline);
  /// The same with an own sender, whose packing this is: its rows are copied from where they are,
  /// the others' come over `transport`. If there are no others, `transport` may be null, and
  /// nothing is copied: commit() serves the packing itself. Hashes are taken of what will be served
  /// in both cases.
  void receive_held(const Transaction& transaction, const HeldPacking& held, Transport* transport,
                    Deadline deadline);
  /// Compares with what the senders say they sent. Throws Error{kDataLoss} naming tensor and rows
  /// if a slice differs or the shadow is not covered exactly once; the transaction is over then.
  void verify(const Transaction& transaction, std::span<const SenderReport> reports);
  void prepare(const Transaction& transaction);
  /// Serves the new version from now on.
  ServedWeights commit(const Transaction& transaction);
  /// Gives the shadow up; ends a receive() in flight and waits for it to let go, else throws
  /// Error{kDeadlineExceeded}. A transaction that this receiver does not know is aborted already;
  /// a committed one is refused.
  void abort(const Transaction& transaction, Deadline deadline);

  ServedWeights served() const;
  /// Whether a transaction may omit the tensors that are the same in every version: one that had
  /// them was verified. Not while a trainer of this process serves its own memory.
  bool has_frozen() const;
  ReceiverStatus status() const;
  const Manifest& manifest() const { return manifest_; }

 private:
  struct Attempt;
  void check_job(const Transaction& transaction) const;
  Attempt& attempt_for(const Transaction& transaction, const char* operation);
  void require_state(ReceiverState state, const char* operation) const;
  ReceiverState resting_state() const;
  void end_attempt(const std::string& failure);
  bool is_in_place() const { return options_.release_engine != nullptr; }
  void empty_buffer(ReceiveAttempt& bytes, Deadline deadline);
  std::shared_ptr<FrozenRows> frozen_for(const Transaction& transaction) const;
  void fill(const Transaction& transaction, const HeldPacking* held, Transport* transport,
            Deadline deadline);
  bool finish_receive(std::shared_ptr<Attempt> attempt, const std::string& failure);

  const std::string job_;  // constant after construction, like the next seven
  const ParameterTable& table_;
  const QuantizationPlan plan_;
  const Manifest manifest_;
  const std::vector<Slice> destination_;
  const kernels::WeightKernels& kernels_;
  const ReceiverOptions options_;
  const std::shared_ptr<const ParameterTable> held_;  // of the rows that are held
  ShadowPool pool_;                                   // has its own lock

  mutable std::mutex mutex_;
  std::condition_variable attempt_ended_;
  ReceiverState state_ = ReceiverState::kStale;  // guarded by mutex_, like all that follow
  int64_t epoch_ = 0;
  ServedWeights served_;
  std::shared_ptr<FrozenRows> frozen_;  // verified; null: not yet. Shared: with buffers
  int64_t highest_version_ = 0;         // that was ever served
  bool is_poisoned_ = false;
  std::optional<Transaction> last_committed_;
  std::shared_ptr<Attempt> attempt_;  // shared with the receive() that fills it
  std::string last_failure_;
};

}  // namespace nibble
