#include "weight_sync/sender.h"

#include <optional>
#include <tuple>

#include "core/base/fail.h"
#include "weight_sync/delta.h"
#include "weight_sync/hash_batch.h"

namespace nibble {

struct WeightSender::Version {
  std::vector<LocalTensor> tensors;
  std::shared_ptr<const void> keep_alive;
  std::mutex mutex;
  // Receivers of one layout get the same slices: each is hashed once a version.
  using Place = std::tuple<int64_t, int64_t, int64_t>;
  std::map<Place, quant::ContentHash> hashes;  // guarded by mutex

  static Place place(const Slice& slice) { return {slice.tensor, slice.row_begin, slice.row_end}; }
  std::optional<quant::ContentHash> known_hash(const Slice& slice) {
    const std::lock_guard lock(mutex);
    const auto found = hashes.find(place(slice));
    if (found == hashes.end()) return std::nullopt;
    return found->second;
  }
  void remember(const SliceHash& slice) {
    const std::lock_guard lock(mutex);
    hashes.emplace(place(slice.slice), slice.hash);
  }
};

WeightSender::WeightSender(int rank, Manifest manifest, const kernels::WeightKernels& kernels)
    : rank_(rank), manifest_(std::move(manifest)), kernels_(kernels) {}

void WeightSender::publish(int64_t version, std::vector<LocalTensor> tensors,
                           std::shared_ptr<const void> keep_alive) {
  NIBBLE_CHECK(static_cast<int64_t>(tensors.size()) == manifest_.size(),
               "{} tensors for a model that stores {}", tensors.size(), manifest_.size());
  for (int64_t t = 0; t < manifest_.size(); ++t) {
    const LocalTensor& local = tensors[static_cast<size_t>(t)];
    const StoredTensor& tensor = manifest_.at(t);
    if (local.row_begin < 0 || local.row_begin > local.row_end || local.row_end > tensor.rows ||
        (local.row_end - local.row_begin) * tensor.row_bytes() !=
            static_cast<int64_t>(local.bytes.size())) {
      fail(ErrorCode::kInvalidArgument,
           "version {}: tensor '{}' has {} rows of {} bytes; {} bytes were given for rows [{}, {})",
           version, tensor.name, tensor.rows, tensor.row_bytes(), local.bytes.size(),
           local.row_begin, local.row_end);
    }
  }
  auto made = std::make_shared<Version>();
  made->tensors = std::move(tensors);
  made->keep_alive = std::move(keep_alive);
  const std::lock_guard lock(mutex_);
  if (version <= last_version_) {
    fail(ErrorCode::kFailedPrecondition, "version {} is not above version {}, published already",
         version, last_version_);
  }
  last_version_ = version;
  versions_.emplace(version, std::move(made));
}

void WeightSender::retire_before(int64_t version) {
  const std::lock_guard lock(mutex_);
  versions_.erase(versions_.begin(), versions_.lower_bound(version));
}

std::shared_ptr<WeightSender::Version> WeightSender::version_at(int64_t version) const {
  const std::lock_guard lock(mutex_);
  const auto found = versions_.find(version);
  if (found == versions_.end()) {
    fail(ErrorCode::kFailedPrecondition, "sender {} does not hold version {}", rank_, version);
  }
  return found->second;
}

void WeightSender::check_transaction(const Transaction& transaction, const SyncPlan& plan) {
  NIBBLE_CHECK(plan.manifest_digest == manifest_.digest, "the plan is for another manifest");
  if (transaction.plan_digest != plan.digest) {
    fail(ErrorCode::kFailedPrecondition,
         "version {}: the transaction's plan is {}, sender {} computed {}", transaction.version,
         digest_hex(transaction.plan_digest), rank_, digest_hex(plan.digest));
  }
  const std::lock_guard lock(mutex_);
  if (transaction.epoch < epoch_) {
    fail(ErrorCode::kFailedPrecondition, "version {}: epoch {} is stale, sender {} is in epoch {}",
         transaction.version, transaction.epoch, rank_, epoch_);
  }
  epoch_ = transaction.epoch;
}

SenderReport WeightSender::move(const Transaction& transaction, const SyncPlan& plan,
                                Transport& transport, Deadline deadline) {
  check_transaction(transaction, plan);
  const std::shared_ptr<Version> version = version_at(transaction.version);
  SenderReport report{rank_, transaction, {}, 0};
  const Edge* edge = plan.edge_of(rank_);
  if (edge == nullptr) return report;
  const auto base = transaction.base_version == 0 ? nullptr : version_at(transaction.base_version);

  const auto pieces = edge_pieces(manifest_, *edge, version->tensors);
  std::vector<bool> is_known;
  for (const PlannedSlice& planned : edge->slices) {
    const auto known = version->known_hash(planned.slice);
    report.slices.push_back({planned.slice, known.value_or(quant::ContentHash{})});
    is_known.push_back(known.has_value());
  }
  HashBatch hashes(kernels_, plan.sizes.bucket_bytes);
  const SentHandler hash_segment = [&](const Segment& segment) {
    const auto i = static_cast<size_t>(segment.piece);
    if (is_known[i]) return;
    hashes.add(manifest_, edge->slices[i], segment, pieces[i], &report.slices[i].hash);
  };
  if (transaction.base_version == 0) {
    transport.send(pieces, plan.sizes, hash_segment, deadline);
    report.bytes = edge->bytes;
  } else {
    report.bytes = send_delta(*edge, plan.sizes, edge_pieces(manifest_, *edge, base->tensors),
                              pieces, transport, deadline);
    for (size_t i = 0; i < pieces.size(); ++i) {
      hash_segment({static_cast<int64_t>(i), 0, std::ssize(pieces[i])});
    }
  }
  hashes.flush();
  for (const SliceHash& slice : report.slices) version->remember(slice);
  return report;
}

// Returns the bytes sent.
int64_t WeightSender::send_delta(const Edge& edge, const TransferSizes& sizes,
                                 std::span<const std::span<const std::byte>> base,
                                 std::span<const std::span<const std::byte>> next,
                                 Transport& transport, Deadline deadline) const {
  NIBBLE_CHECK(kernels_.device() == DeviceKind::kCpu, "deltas are made in host memory");
  const EncodedEdge encoded = encode_edge(manifest_, edge, base, next);
  for (const std::span<const std::byte> part :
       {std::span(encoded.header), std::span(encoded.payload)}) {
    if (part.empty()) continue;  // nothing changed
    transport.send(
        std::span(&part, 1), sizes, [](const Segment&) {}, deadline);
  }
  return std::ssize(encoded.header) + std::ssize(encoded.payload);
}

std::vector<quant::ContentHash> WeightSender::content_hashes(int64_t version) const {
  return nibble::content_hashes(manifest_, version_at(version)->tensors, kernels_);
}

}  // namespace nibble
