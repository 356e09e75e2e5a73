#include "weight_sync/receiver.h"

#include <algorithm>

#include "core/base/fail.h"
#include "weight_sync/receive_attempt.h"

namespace nibble {

// The transaction in flight; shared with the receive() that fills it.
struct WeightReceiver::Attempt {
  Attempt(const ReceivingEnd& end, const Transaction& transaction, SyncPlan plan,
          std::shared_ptr<const ResidentWeights> base)
      : bytes(end, transaction, std::move(plan), std::move(base)) {}
  ReceiveAttempt bytes;
  std::shared_ptr<const std::vector<quant::ContentHash>> tensor_hashes;  // once verified
  Transport* transport = nullptr;  // guarded by the receiver's mutex_, like the next three
  bool is_filling = false;
  bool has_arrived = false;
  bool is_abort_wanted = false;
};

std::string_view receiver_state_name(ReceiverState state) {
  switch (state) {
    case ReceiverState::kStale:
      return "stale";
    case ReceiverState::kIdle:
      return "idle";
    case ReceiverState::kReserved:
      return "reserved";
    case ReceiverState::kMoving:
      return "moving";
    case ReceiverState::kVerified:
      return "verified";
    case ReceiverState::kPrepared:
      return "prepared";
    case ReceiverState::kPoisoned:
      return "poisoned";
  }
  return "";
}

namespace {

std::shared_ptr<const ParameterTable> borrowed(const ParameterTable& table) {
  return {std::shared_ptr<void>(), &table};
}

}  // namespace

WeightReceiver::WeightReceiver(std::string job, const ParameterTable& table, QuantizationPlan plan,
                               Manifest manifest, const kernels::WeightKernels& kernels,
                               ReceiverOptions options)
    : job_(std::move(job)),
      table_(table),
      plan_(std::move(plan)),
      manifest_(std::move(manifest)),
      destination_(options.destination.empty() ? replica_slices(manifest_) : options.destination),
      kernels_(kernels),
      options_(std::move(options)),
      held_(options_.destination.empty()
                ? borrowed(table)
                : std::make_shared<ParameterTable>(held_table(table, manifest_, destination_))),
      pool_(held_, plan_, kernels.device(), is_in_place() ? 1 : 2) {}

void WeightReceiver::check_job(const Transaction& transaction) const {
  if (transaction.job != job_) {
    fail(ErrorCode::kFailedPrecondition, "this worker serves job '{}', not '{}'", job_,
         transaction.job);
  }
}

WeightReceiver::Attempt& WeightReceiver::attempt_for(const Transaction& transaction,
                                                     const char* operation) {
  check_job(transaction);
  if (transaction.epoch < epoch_) {
    fail(ErrorCode::kFailedPrecondition, "{} of version {}: epoch {} is stale, this is epoch {}",
         operation, transaction.version, transaction.epoch, epoch_);
  }
  if (attempt_ == nullptr) {
    fail(ErrorCode::kFailedPrecondition,
         "{} of version {}: no transaction is in flight; the worker is {}", operation,
         transaction.version, receiver_state_name(state_));
  }
  const Transaction& own = attempt_->bytes.transaction();
  if (transaction.epoch != own.epoch) {
    fail(ErrorCode::kFailedPrecondition,
         "{} of version {}: epoch {}, but the transaction in flight began in epoch {}", operation,
         transaction.version, transaction.epoch, own.epoch);
  }
  if (transaction.version != own.version) {
    fail(ErrorCode::kFailedPrecondition, "{} of version {}: version {} is in flight", operation,
         transaction.version, own.version);
  }
  if (transaction.plan_digest != own.plan_digest) {
    fail(ErrorCode::kFailedPrecondition, "{} of version {}: plan {} is not the reserved plan {}",
         operation, transaction.version, digest_hex(transaction.plan_digest),
         digest_hex(own.plan_digest));
  }
  if (transaction.base_version != own.base_version) {
    fail(
        ErrorCode::kFailedPrecondition,
        "{} of version {}: the change since version {} was reserved, not that since {} (0: a whole "
        "version)",
        operation, transaction.version, own.base_version, transaction.base_version);
  }
  if (transaction.omits_frozen != own.omits_frozen) {
    fail(ErrorCode::kFailedPrecondition,
         "{} of version {}: it was reserved {} what is the same in every version", operation,
         transaction.version, own.omits_frozen ? "without" : "with");
  }
  return *attempt_;
}

void WeightReceiver::require_state(ReceiverState state, const char* operation) const {
  if (state_ == state) return;
  fail(ErrorCode::kFailedPrecondition, "{} of version {}: the worker is {}, it must be {}",
       operation, attempt_->bytes.transaction().version, receiver_state_name(state_),
       receiver_state_name(state));
}

ReceiverState WeightReceiver::resting_state() const {
  if (served_.weights != nullptr) return ReceiverState::kIdle;
  return is_poisoned_ ? ReceiverState::kPoisoned : ReceiverState::kStale;
}

void WeightReceiver::end_attempt(const std::string& failure) {
  attempt_.reset();
  state_ = resting_state();
  if (!failure.empty()) last_failure_ = failure;
  attempt_ended_.notify_all();
}

void WeightReceiver::reserve(const Transaction& transaction, SyncPlan plan) {
  const std::lock_guard lock(mutex_);
  check_job(transaction);
  if (transaction.plan_digest != plan.digest) {
    fail(ErrorCode::kFailedPrecondition,
         "reserve of version {}: the coordinator's plan is {}, this worker computed {}; compare "
         "the manifests",
         transaction.version, digest_hex(transaction.plan_digest), digest_hex(plan.digest));
  }
  NIBBLE_CHECK(plan.manifest_digest == manifest_.digest, "the plan is for another manifest");
  if (attempt_ != nullptr && attempt_->bytes.transaction() == transaction &&
      state_ == ReceiverState::kReserved) {
    return;
  }
  // The coordinator has gone on without this worker: a later version, or the same in a later epoch,
  // takes the place of what was left behind, unless bytes are still arriving.
  const bool is_later = attempt_ != nullptr && !attempt_->is_filling &&
                        (transaction.version > attempt_->bytes.transaction().version ||
                         (transaction.version == attempt_->bytes.transaction().version &&
                          transaction.epoch > attempt_->bytes.transaction().epoch));
  if (attempt_ != nullptr && !is_later) {
    fail(ErrorCode::kFailedPrecondition,
         "reserve of version {}: version {} of epoch {} is in flight and {}; abort it first",
         transaction.version, attempt_->bytes.transaction().version,
         attempt_->bytes.transaction().epoch, receiver_state_name(state_));
  }
  if (transaction.epoch < epoch_ || transaction.epoch <= 0) {
    fail(ErrorCode::kFailedPrecondition,
         "reserve of version {}: epoch {} is stale, this is epoch {}", transaction.version,
         transaction.epoch, epoch_);
  }
  // An engine that serves nothing may take again what it served before.
  const bool is_new = transaction.version > highest_version_ ||
                      (served_.weights == nullptr && transaction.version == highest_version_);
  if (!is_new) {
    fail(ErrorCode::kFailedPrecondition,
         "reserve of version {}: version {} is served, and versions only rise", transaction.version,
         highest_version_);
  }
  if (transaction.base_version != 0 && transaction.base_version != served_.version) {
    fail(ErrorCode::kFailedPrecondition,
         "reserve of version {}: the change since version {} is offered, but version {} is served",
         transaction.version, transaction.base_version, served_.version);
  }
  if (transaction.omits_frozen && !frozen_) {
    fail(ErrorCode::kFailedPrecondition,
         "reserve of version {}: it leaves out what is the same in every version, which this "
         "worker does not have",
         transaction.version);
  }
  if (attempt_ != nullptr) {
    end_attempt(fmt::format("version {} of epoch {} was left behind for version {} of epoch {}",
                            attempt_->bytes.transaction().version,
                            attempt_->bytes.transaction().epoch, transaction.version,
                            transaction.epoch));
  }
  // In place the base is the buffer that is written.
  const bool keeps_base = transaction.base_version != 0 && !is_in_place();
  auto attempt = std::make_shared<Attempt>(
      ReceivingEnd{manifest_, table_, plan_, destination_, kernels_, options_.own_sender},
      transaction, std::move(plan), keeps_base ? served_.weights : nullptr);
  if (!is_in_place() && !attempt->bytes.is_flip()) {
    attempt->bytes.set_shadow(pool_.acquire(), frozen_for(transaction));
  }
  attempt_ = std::move(attempt);
  epoch_ = transaction.epoch;
  state_ = ReceiverState::kReserved;
}

void WeightReceiver::receive(const Transaction& transaction, Transport& transport,
                             Deadline deadline) {
  fill(transaction, nullptr, &transport, deadline);
}

void WeightReceiver::receive_held(const Transaction& transaction, const HeldPacking& held,
                                  Transport* transport, Deadline deadline) {
  NIBBLE_CHECK(options_.own_sender == held.rank, "the packing of rank {} is not the own sender's",
               held.rank);
  fill(transaction, &held, transport, deadline);
}

// In place: nothing is served from here until a version is committed.
void WeightReceiver::empty_buffer(ReceiveAttempt& bytes, Deadline deadline) {
  {
    const std::lock_guard lock(mutex_);
    served_ = {};  // the engine holds it still
    is_poisoned_ = true;
    // There is no room for them twice.
    if (!bytes.transaction().omits_frozen) frozen_.reset();
  }
  options_.release_engine();
  auto shadow = pool_.acquire(deadline);
  bytes.set_shadow(std::move(shadow), [&] {
    const std::lock_guard lock(mutex_);
    return frozen_for(bytes.transaction());
  }());
}

// Of a whole transaction new ones: those that are served must not be written to.
std::shared_ptr<FrozenRows> WeightReceiver::frozen_for(const Transaction& transaction) const {
  if (transaction.omits_frozen) return frozen_;
  const ParameterTable& table = *held_;
  const auto is_frozen = [](const ParameterSpec& parameter) { return parameter.is_frozen; };
  if (std::none_of(table.parameters.begin(), table.parameters.end(), is_frozen)) return nullptr;
  return std::make_shared<FrozenRows>(table, plan_, kernels_.device());
}

void WeightReceiver::fill(const Transaction& transaction, const HeldPacking* held,
                          Transport* transport, Deadline deadline) {
  std::shared_ptr<Attempt> attempt;
  {
    const std::lock_guard lock(mutex_);
    attempt_for(transaction, "receive");
    require_state(ReceiverState::kReserved, "receive");
    state_ = ReceiverState::kMoving;
    attempt = attempt_;
    attempt->transport = transport;
    attempt->is_filling = true;
  }
  try {
    if (is_in_place() && !attempt->bytes.is_flip()) empty_buffer(attempt->bytes, deadline);
    if (held != nullptr) attempt->bytes.take_held(*held);
    if (transport != nullptr) attempt->bytes.receive(*transport, deadline);
  } catch (const std::exception& error) {
    finish_receive(std::move(attempt), error.what());
    throw;
  }
  if (!finish_receive(std::move(attempt), {})) {
    fail(ErrorCode::kUnavailable, "receive of version {} was aborted", transaction.version);
  }
}

// True if the shadow is full and wanted. Otherwise the attempt is over, and its shadow free before
// abort() hears of it.
bool WeightReceiver::finish_receive(std::shared_ptr<Attempt> attempt, const std::string& failure) {
  const std::lock_guard lock(mutex_);
  attempt->transport = nullptr;
  attempt->is_filling = false;
  if (failure.empty() && !attempt->is_abort_wanted) {
    attempt->has_arrived = true;
    return true;
  }
  attempt.reset();
  end_attempt(failure);
  return false;
}

void WeightReceiver::verify(const Transaction& transaction, std::span<const SenderReport> reports) {
  const std::lock_guard lock(mutex_);
  Attempt& attempt = attempt_for(transaction, "verify");
  if (state_ == ReceiverState::kVerified || state_ == ReceiverState::kPrepared) return;
  require_state(ReceiverState::kMoving, "verify");
  if (!attempt.has_arrived) {
    fail(ErrorCode::kFailedPrecondition, "verify of version {}: {} of {} bytes have arrived",
         transaction.version, attempt.bytes.arrived_bytes(), attempt.bytes.expected_bytes());
  }
  try {
    attempt.tensor_hashes =
        std::make_shared<const std::vector<quant::ContentHash>>(attempt.bytes.verify(reports));
  } catch (const Error& error) {
    // What is left out next time must be what the senders have.
    if (transaction.omits_frozen) frozen_.reset();
    end_attempt(error.what());
    throw;
  }
  if (!transaction.omits_frozen) frozen_ = attempt.bytes.frozen();
  is_poisoned_ = false;
  state_ = ReceiverState::kVerified;
}

void WeightReceiver::prepare(const Transaction& transaction) {
  const std::lock_guard lock(mutex_);
  attempt_for(transaction, "prepare");
  if (state_ == ReceiverState::kPrepared) return;
  require_state(ReceiverState::kVerified, "prepare");
  state_ = ReceiverState::kPrepared;
}

ServedWeights WeightReceiver::commit(const Transaction& transaction) {
  ServedWeights before;  // let go of after the lock: it may be the last holder
  const std::lock_guard lock(mutex_);
  if (last_committed_ == transaction) {
    if (served_.version == transaction.version) return served_;
    fail(ErrorCode::kFailedPrecondition,
         "commit of version {}: it was committed before, and is not served any more",
         transaction.version);
  }
  Attempt& attempt = attempt_for(transaction, "commit");
  require_state(ReceiverState::kPrepared, "commit");
  before = std::move(served_);
  served_ = {attempt.bytes.take_weights(), transaction.version, std::move(attempt.tensor_hashes)};
  highest_version_ = transaction.version;
  last_committed_ = transaction;
  end_attempt({});
  return served_;
}

void WeightReceiver::abort(const Transaction& transaction, Deadline deadline) {
  std::unique_lock lock(mutex_);
  check_job(transaction);
  if (last_committed_ == transaction) {
    fail(ErrorCode::kFailedPrecondition, "abort of version {}: it is committed",
         transaction.version);
  }
  if (attempt_ == nullptr && transaction.epoch >= epoch_) return;
  Attempt& attempt = attempt_for(transaction, "abort");
  if (!attempt.is_filling) {
    end_attempt({});
    return;
  }
  attempt.is_abort_wanted = true;
  if (attempt.transport != nullptr) attempt.transport->abort();
  // attempt_ may go on to another transaction before this thread wakes.
  const bool in_time = attempt_ended_.wait_until(lock, deadline.time(), [&] {
    return attempt_ == nullptr || attempt_->bytes.transaction() != transaction;
  });
  if (!in_time) {
    fail(ErrorCode::kDeadlineExceeded,
         "abort of version {}: the transfer has not let go of the shadow yet; ask again",
         transaction.version);
  }
}

ServedWeights WeightReceiver::served() const {
  const std::lock_guard lock(mutex_);
  return served_;
}

bool WeightReceiver::has_frozen() const {
  const std::lock_guard lock(mutex_);
  return frozen_ != nullptr;
}

ReceiverStatus WeightReceiver::status() const {
  const std::lock_guard lock(mutex_);
  ReceiverStatus status;
  status.state = state_;
  status.served_version = served_.version;
  status.epoch = epoch_;
  status.num_buffers = pool_.num_allocated();
  status.last_failure = last_failure_;
  if (attempt_ != nullptr) {
    status.transaction = attempt_->bytes.transaction();
    status.arrived_bytes = attempt_->bytes.arrived_bytes();
    status.expected_bytes = attempt_->bytes.expected_bytes();
  }
  return status;
}

}  // namespace nibble
