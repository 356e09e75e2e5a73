#include "weight_sync/receiver.h"

#include <atomic>

#include "core/base/fail.h"
#include "weight_sync/delta.h"
#include "weight_sync/hash_batch.h"
#include "weight_sync/stored_bytes.h"

namespace nibble {

struct WeightReceiver::Attempt {
  Transaction transaction;
  SyncPlan plan;
  std::shared_ptr<const ResidentWeights> weights;  // the shadow; in a flip null until it is taken
  std::shared_ptr<const ResidentWeights> base;     // of a delta: what is served
  std::vector<IncomingEdge> edges;  // memory of the shadow, in plan order; in a flip no pieces
  std::vector<std::vector<quant::ContentHash>> hashes;  // of what arrived; receive()'s thread
  std::shared_ptr<const std::vector<quant::ContentHash>> tensor_hashes;  // once verified
  std::atomic<int64_t> arrived_bytes = 0;
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
  }
  return "";
}

WeightReceiver::WeightReceiver(std::string job, const ParameterTable& table, QuantizationPlan plan,
                               Manifest manifest, const kernels::WeightKernels& kernels,
                               std::optional<int> own_sender)
    : job_(std::move(job)),
      table_(table),
      plan_(std::move(plan)),
      manifest_(std::move(manifest)),
      destination_(replica_slices(manifest_)),
      kernels_(kernels),
      own_sender_(own_sender),
      pool_(table, plan_, kernels.device()) {}

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
  const Transaction& own = attempt_->transaction;
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
  return *attempt_;
}

void WeightReceiver::require_state(ReceiverState state, const char* operation) const {
  if (state_ == state) return;
  fail(ErrorCode::kFailedPrecondition, "{} of version {}: the worker is {}, it must be {}",
       operation, attempt_->transaction.version, receiver_state_name(state_),
       receiver_state_name(state));
}

ReceiverState WeightReceiver::resting_state() const {
  return served_.weights == nullptr ? ReceiverState::kStale : ReceiverState::kIdle;
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
  if (attempt_ != nullptr && attempt_->transaction == transaction &&
      state_ == ReceiverState::kReserved) {
    return;
  }
  // The coordinator has gone on without this worker: a later version, or the same in a later epoch,
  // takes the place of what was left behind, unless bytes are still arriving.
  const bool is_later = attempt_ != nullptr && !attempt_->is_filling &&
                        (transaction.version > attempt_->transaction.version ||
                         (transaction.version == attempt_->transaction.version &&
                          transaction.epoch > attempt_->transaction.epoch));
  if (attempt_ != nullptr && !is_later) {
    fail(ErrorCode::kFailedPrecondition,
         "reserve of version {}: version {} of epoch {} is in flight and {}; abort it first",
         transaction.version, attempt_->transaction.version, attempt_->transaction.epoch,
         receiver_state_name(state_));
  }
  if (transaction.epoch < epoch_ || transaction.epoch <= 0) {
    fail(ErrorCode::kFailedPrecondition,
         "reserve of version {}: epoch {} is stale, this is epoch {}", transaction.version,
         transaction.epoch, epoch_);
  }
  if (transaction.version <= served_.version) {
    fail(ErrorCode::kFailedPrecondition,
         "reserve of version {}: version {} is served, and versions only rise", transaction.version,
         served_.version);
  }
  if (transaction.base_version != 0 && transaction.base_version != served_.version) {
    fail(ErrorCode::kFailedPrecondition,
         "reserve of version {}: the change since version {} is offered, but version {} is served",
         transaction.version, transaction.base_version, served_.version);
  }
  if (attempt_ != nullptr) {
    end_attempt(fmt::format("version {} of epoch {} was left behind for version {} of epoch {}",
                            attempt_->transaction.version, attempt_->transaction.epoch,
                            transaction.version, transaction.epoch));
  }
  auto attempt = std::make_shared<Attempt>();
  const auto shadow = is_flip(plan) ? nullptr : pool_.acquire();
  attempt->weights = shadow;
  for (const Edge& edge : plan.edges) {
    IncomingEdge incoming{edge.sender, {}};
    for (const PlannedSlice& planned : edge.slices) {
      if (!shadow) break;
      const StoredTensor& tensor = manifest_.at(planned.slice.tensor);
      incoming.pieces.push_back(stored_bytes(shadow->stored(tensor.parameter), tensor)
                                    .subspan(static_cast<size_t>(planned.byte_begin),
                                             static_cast<size_t>(planned.bytes())));
    }
    attempt->edges.push_back(std::move(incoming));
    attempt->hashes.emplace_back(edge.slices.size());
  }
  attempt->transaction = transaction;
  if (transaction.base_version != 0) attempt->base = served_.weights;
  attempt->plan = std::move(plan);
  attempt_ = std::move(attempt);
  epoch_ = transaction.epoch;
  state_ = ReceiverState::kReserved;
}

bool WeightReceiver::is_flip(const SyncPlan& plan) const {
  return own_sender_ && plan.edges.size() == 1 && plan.edges[0].sender == *own_sender_;
}

void WeightReceiver::hash_arrived(HashBatch& hashes, Attempt& attempt, size_t edge,
                                  const Segment& segment, std::span<const std::byte> piece) const {
  const auto i = static_cast<size_t>(segment.piece);
  hashes.add(manifest_, attempt.plan.edges[edge].slices[i], segment, piece,
             &attempt.hashes[edge][i]);
  attempt.arrived_bytes += segment.bytes;
}

void WeightReceiver::receive(const Transaction& transaction, Transport& transport,
                             Deadline deadline) {
  fill(transaction, nullptr, &transport, deadline);
}

void WeightReceiver::receive_held(const Transaction& transaction, const HeldPacking& held,
                                  Transport* transport, Deadline deadline) {
  NIBBLE_CHECK(own_sender_ == held.rank, "the packing of rank {} is not the own sender's",
               held.rank);
  fill(transaction, &held, transport, deadline);
}

// The own sender's edge: in a flip its memory is what will be served, else it is copied from.
void WeightReceiver::take_held(Attempt& attempt, const HeldPacking& held) const {
  const auto tensors = shard_tensors(manifest_, *held.parameters,
                                     owned_slices(manifest_, table_, held.mesh, held.rank));
  DeviceMemory& memory = device_memory(kernels_.device());
  HashBatch hashes(kernels_, attempt.plan.sizes.bucket_bytes);
  for (size_t e = 0; e < attempt.edges.size(); ++e) {
    if (attempt.edges[e].sender != held.rank) continue;
    const auto source = edge_pieces(manifest_, attempt.plan.edges[e], tensors);
    const auto& target = attempt.edges[e].pieces;  // empty in a flip
    for (size_t i = 0; i < target.size(); ++i) {
      memory.copy(target[i].data(), source[i].data(), std::ssize(source[i]));
    }
    memory.finish();
    for (size_t i = 0; i < source.size(); ++i) {
      const Segment whole{static_cast<int64_t>(i), 0, std::ssize(source[i])};
      hash_arrived(hashes, attempt, e, whole, target.empty() ? source[i] : target[i]);
    }
  }
  hashes.flush();
  if (!is_flip(attempt.plan)) return;
  attempt.weights =
      std::make_shared<ResidentWeights>(table_, plan_, held.parameters, kernels_.device());
}

// Headers, which say how long the rest is; then that; then the shadow from what is served.
void WeightReceiver::receive_delta(Attempt& attempt, std::span<const size_t> edges,
                                   Transport& transport, Deadline deadline) const {
  NIBBLE_CHECK(kernels_.device() == DeviceKind::kCpu, "deltas are applied in host memory");
  const auto receive = [&](const std::vector<std::vector<std::byte>*>& parts) {
    std::vector<IncomingEdge> incoming;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i]->empty()) continue;  // nothing changed
      incoming.push_back({attempt.plan.edges[edges[i]].sender, {std::span(*parts[i])}});
    }
    transport.receive(
        incoming, attempt.plan.sizes, [](size_t, const Segment&) {}, deadline);
  };
  std::vector<std::vector<std::byte>> headers(edges.size()), payloads(edges.size());
  std::vector<std::vector<std::byte>*> parts;
  for (size_t i = 0; i < edges.size(); ++i) {
    headers[i].resize(static_cast<size_t>(delta_header_bytes(attempt.plan.edges[edges[i]])));
    parts.push_back(&headers[i]);
  }
  receive(parts);
  parts.clear();
  for (size_t i = 0; i < edges.size(); ++i) {
    payloads[i].resize(
        static_cast<size_t>(delta_payload_bytes(attempt.plan.edges[edges[i]], headers[i])));
    parts.push_back(&payloads[i]);
  }
  receive(parts);
  const auto base = replica_tensors(manifest_, *attempt.base);
  for (size_t i = 0; i < edges.size(); ++i) {
    const Edge& edge = attempt.plan.edges[edges[i]];
    decode_edge(manifest_, edge, headers[i], payloads[i], edge_pieces(manifest_, edge, base),
                attempt.edges[edges[i]].pieces);
  }
}

// The edges of all other senders.
void WeightReceiver::receive_edges(Attempt& attempt, Transport& transport,
                                   Deadline deadline) const {
  std::vector<IncomingEdge> edges;
  std::vector<size_t> place;  // in the plan
  for (size_t e = 0; e < attempt.edges.size(); ++e) {
    if (own_sender_ == attempt.edges[e].sender) continue;
    edges.push_back(attempt.edges[e]);
    place.push_back(e);
  }
  HashBatch hashes(kernels_, attempt.plan.sizes.bucket_bytes);
  if (attempt.base != nullptr) {
    receive_delta(attempt, place, transport, deadline);
    for (const size_t e : place) {
      for (size_t i = 0; i < attempt.edges[e].pieces.size(); ++i) {
        const auto piece = attempt.edges[e].pieces[i];
        hash_arrived(hashes, attempt, e, {static_cast<int64_t>(i), 0, std::ssize(piece)}, piece);
      }
    }
    hashes.flush();
    return;
  }
  transport.receive(
      edges, attempt.plan.sizes,
      [&](size_t edge, const Segment& segment) {
        hash_arrived(hashes, attempt, place[edge], segment,
                     edges[edge].pieces[static_cast<size_t>(segment.piece)]);
      },
      deadline);
  hashes.flush();
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
    if (held != nullptr) take_held(*attempt, *held);
    if (transport != nullptr) receive_edges(*attempt, *transport, deadline);
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

void WeightReceiver::check_report(const Edge& edge, size_t edge_index,
                                  std::span<const SenderReport> reports) const {
  const SenderReport* report = nullptr;
  for (const SenderReport& candidate : reports) {
    if (candidate.sender == edge.sender) report = &candidate;
  }
  const int64_t version = attempt_->transaction.version;
  const Slice& first = edge.slices.front().slice;
  if (report == nullptr || report->slices.size() != edge.slices.size()) {
    fail(
        ErrorCode::kDataLoss,
        "version {}: sender {} reported {} slices of {}, the first of them rows [{}, {}) of tensor "
        "'{}'",
        version, edge.sender, report == nullptr ? 0 : report->slices.size(), edge.slices.size(),
        first.row_begin, first.row_end, manifest_.at(first.tensor).name);
  }
  if (report->transaction != attempt_->transaction) {
    fail(ErrorCode::kDataLoss, "version {}: sender {} sent version {} of epoch {}", version,
         edge.sender, report->transaction.version, report->transaction.epoch);
  }
  for (size_t i = 0; i < edge.slices.size(); ++i) {
    const Slice& planned = edge.slices[i].slice;
    const SliceHash& sent = report->slices[i];
    if (sent.slice == planned && sent.hash == attempt_->hashes[edge_index][i]) continue;
    fail(ErrorCode::kDataLoss,
         "version {}: rows [{}, {}) of tensor '{}' from sender {} {}; nothing of this version is "
         "served",
         version, planned.row_begin, planned.row_end, manifest_.at(planned.tensor).name,
         edge.sender,
         sent.slice == planned ? "arrived with other contents than were sent"
                               : "were planned, but the sender reports another slice");
  }
}

void WeightReceiver::verify(const Transaction& transaction, std::span<const SenderReport> reports) {
  const std::lock_guard lock(mutex_);
  Attempt& attempt = attempt_for(transaction, "verify");
  if (state_ == ReceiverState::kVerified || state_ == ReceiverState::kPrepared) return;
  require_state(ReceiverState::kMoving, "verify");
  if (!attempt.has_arrived) {
    fail(ErrorCode::kFailedPrecondition, "verify of version {}: {} of {} bytes have arrived",
         transaction.version, attempt.arrived_bytes.load(), attempt.plan.bytes);
  }
  try {
    std::vector<Slice> written;
    std::vector<quant::ContentHash> tensor_hashes(manifest_.tensors.size());
    for (size_t e = 0; e < attempt.plan.edges.size(); ++e) {
      const std::vector<PlannedSlice>& slices = attempt.plan.edges[e].slices;
      check_report(attempt.plan.edges[e], e, reports);
      for (size_t i = 0; i < slices.size(); ++i) {
        written.push_back(slices[i].slice);
        tensor_hashes[static_cast<size_t>(slices[i].slice.tensor)] += attempt.hashes[e][i];
      }
    }
    const auto problem = coverage_problem(manifest_, written, destination_);
    if (problem) fail(ErrorCode::kDataLoss, "version {}: {}", transaction.version, *problem);
    if (attempt.arrived_bytes != attempt.plan.bytes) {
      fail(ErrorCode::kDataLoss, "version {}: {} bytes arrived, the plan has {}",
           transaction.version, attempt.arrived_bytes.load(), attempt.plan.bytes);
    }
    attempt.tensor_hashes =
        std::make_shared<const std::vector<quant::ContentHash>>(std::move(tensor_hashes));
  } catch (const Error& error) {
    end_attempt(error.what());
    throw;
  }
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
  if (last_committed_ == transaction) return served_;
  Attempt& attempt = attempt_for(transaction, "commit");
  require_state(ReceiverState::kPrepared, "commit");
  before = std::move(served_);
  served_ = {std::move(attempt.weights), transaction.version, std::move(attempt.tensor_hashes)};
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
    return attempt_ == nullptr || attempt_->transaction != transaction;
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

ReceiverStatus WeightReceiver::status() const {
  const std::lock_guard lock(mutex_);
  ReceiverStatus status;
  status.state = state_;
  status.served_version = served_.version;
  status.epoch = epoch_;
  status.num_buffers = pool_.num_allocated();
  status.last_failure = last_failure_;
  if (attempt_ != nullptr) {
    status.transaction = attempt_->transaction;
    status.arrived_bytes = attempt_->arrived_bytes;
    status.expected_bytes = attempt_->plan.bytes;
  }
  return status;
}

}  // namespace nibble
