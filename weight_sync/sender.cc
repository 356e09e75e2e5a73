#include "weight_sync/sender.h"

#include <deque>
#include <optional>

#include "core/base/fail.h"
#include "weight_sync/delta.h"
#include "weight_sync/frozen_rows.h"
#include "weight_sync/hash_batch.h"

namespace nibble {

// Receivers of one layout get the same slices: each is hashed once.
class WeightSender::KnownHashes {
 public:
  std::optional<quant::ContentHash> find(const Slice& slice) {
    const std::lock_guard lock(mutex_);
    const auto found = hashes_.find(place_of(slice));
    return found == hashes_.end() ? std::nullopt : found->second;
  }
  // True for the first who asks: to hash it is up to that one.
  bool claim(const Slice& slice) {
    const std::lock_guard lock(mutex_);
    return hashes_.try_emplace(place_of(slice)).second;
  }
  void remember(const SliceHash& slice) {
    const std::lock_guard lock(mutex_);
    hashes_[place_of(slice.slice)] = slice.hash;
  }

 private:
  std::mutex mutex_;
  // No value: a move has begun to hash it, or failed before it had. Guarded by mutex_.
  std::map<SliceHashes::key_type, std::optional<quant::ContentHash>> hashes_;
};

struct WeightSender::Version {
  std::vector<LocalTensor> tensors;
  std::shared_ptr<const void> keep_alive;
  KnownHashes own;
  std::shared_ptr<KnownHashes> frozen;  // of all versions

  KnownHashes& hashes(const Manifest& manifest, const Slice& slice) {
    return manifest.at(slice.tensor).is_frozen ? *frozen : own;
  }
};

// The hashes of one move's slices. Moves of a version that run side by side share the work: each
// hashes the slices that it comes to first. None waits for another, whose receiver may be dead:
// what another has begun and not ended when this move ends is hashed here too.
class WeightSender::MoveHashes {
 public:
  MoveHashes(const WeightSender& sender, Version& version, const Edge& edge,
             std::span<const std::span<const std::byte>> pieces, int64_t bucket_bytes)
      : manifest_(sender.manifest_),
        version_(version),
        edge_(edge),
        pieces_(pieces),
        is_own_(pieces.size()),
        batch_(sender.kernels_, bucket_bytes) {
    for (const PlannedSlice& planned : edge.slices) slices_.push_back({planned.slice, {}});
  }
  MoveHashes(const MoveHashes&) = delete;  // batch_ points into slices_
  MoveHashes& operator=(const MoveHashes&) = delete;

  // Segments of a piece come in order; of a piece that does not travel none does.
  void add(const Segment& segment) {
    const auto i = static_cast<size_t>(segment.piece);
    if (segment.offset == 0) is_own_[i] = known(i).claim(slices_[i].slice);
    if (!is_own_[i]) return;
    batch_.add(manifest_, edge_.slices[i], segment, pieces_[i], &slices_[i].hash);
    if (segment.offset + segment.bytes == std::ssize(pieces_[i])) {
      whole_.push_back({i, batch_.num_added()});
    }
    share();
  }
  std::vector<SliceHash> finish() {
    batch_.flush();
    share();
    for (size_t i = 0; i < slices_.size(); ++i) {
      if (is_own_[i]) continue;
      if (const auto hash = known(i).find(slices_[i].slice)) {
        slices_[i].hash = *hash;
        continue;
      }
      batch_.add(manifest_, edge_.slices[i], {static_cast<int64_t>(i), 0, std::ssize(pieces_[i])},
                 pieces_[i], &slices_[i].hash);
      whole_.push_back({i, batch_.num_added()});
    }
    batch_.flush();
    share();
    return std::move(slices_);
  }

 private:
  KnownHashes& known(size_t i) { return version_.hashes(manifest_, slices_[i].slice); }
  void share() {
    const int64_t hashed = batch_.num_hashed();
    for (; !whole_.empty() && whole_.front().added <= hashed; whole_.pop_front()) {
      known(whole_.front().piece).remember(slices_[whole_.front().piece]);
    }
  }

  struct Whole {
    size_t piece;
    int64_t added;  // to batch_, up to its last byte
  };
  const Manifest& manifest_;
  Version& version_;
  const Edge& edge_;
  const std::span<const std::span<const std::byte>> pieces_;
  std::vector<SliceHash> slices_;
  std::vector<bool> is_own_;
  std::deque<Whole> whole_;  // not yet shared
  HashBatch batch_;          // last: it writes to slices_ until it ends
};

WeightSender::WeightSender(int rank, Manifest manifest, const kernels::WeightKernels& kernels)
    : rank_(rank),
      manifest_(std::move(manifest)),
      kernels_(kernels),
      frozen_hashes_(std::make_shared<KnownHashes>()) {}

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
  made->frozen = frozen_hashes_;
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
  MoveHashes hashes(*this, *version, *edge, pieces, plan.sizes.bucket_bytes);
  const auto travelling = travelling_slices(manifest_, *edge, transaction.omits_frozen);
  const auto those_of = [&](const std::vector<std::span<const std::byte>>& all) {
    std::vector<std::span<const std::byte>> some;
    for (const size_t i : travelling) some.push_back(all[i]);
    return some;
  };
  const auto sent = those_of(pieces);
  if (transaction.base_version == 0) {
    transport.send(
        sent, plan.sizes,
        [&](const Segment& segment) {
          const size_t i = travelling[static_cast<size_t>(segment.piece)];
          hashes.add({static_cast<int64_t>(i), segment.offset, segment.bytes});
        },
        deadline);
    report.bytes = travelling_bytes(manifest_, *edge, transaction.omits_frozen);
  } else {
    report.bytes = send_delta(plan.sizes, those_of(edge_pieces(manifest_, *edge, base->tensors)),
                              sent, transport, deadline);
  }
  report.slices = hashes.finish();
  return report;
}

// Returns the bytes sent.
int64_t WeightSender::send_delta(const TransferSizes& sizes, ConstPieces base, ConstPieces next,
                                 Transport& transport, Deadline deadline) const {
  int64_t bytes = 0;
  const auto send = [&](ConstPieces pieces) {
    if (pieces.empty()) return;
    transport.send(
        pieces, sizes, [](const Segment&) {}, deadline);
    for (const auto piece : pieces) bytes += std::ssize(piece);
  };
  for (const PieceRange& range : delta_ranges(piece_sizes(next), sizes)) {
    const size_t count = range.end - range.begin;
    const EncodedDelta delta =
        encode_delta(kernels_, base.subspan(range.begin, count), next.subspan(range.begin, count));
    const Array<std::byte> header(std::span(delta.header), kernels_.device());
    const std::span<const std::byte> piece(header.data(), header.size());
    send(std::span(&piece, 1));
    send(delta.payload);
  }
  return bytes;
}

std::vector<quant::ContentHash> WeightSender::content_hashes(int64_t version) const {
  return nibble::content_hashes(manifest_, version_at(version)->tensors, kernels_);
}

}  // namespace nibble
