#include "weight_sync/receive_attempt.h"

#include <algorithm>

#include "core/base/fail.h"
#include "weight_sync/delta.h"
#include "weight_sync/stored_bytes.h"

namespace nibble {
namespace {

// The delta of one edge as it comes in, range after range.
class DeltaStream {
 public:
  DeltaStream(const kernels::WeightKernels& kernels, const IncomingEdge& edge,
              std::vector<std::span<const std::byte>> base, const TransferSizes& sizes)
      : kernels_(kernels),
        edge_(edge),
        base_(std::move(base)),
        ranges_(delta_ranges(piece_sizes(Pieces(edge.pieces)), sizes)) {}
  int sender() const { return edge_.sender; }
  bool is_over() const { return next_ == ranges_.size(); }

  // What to fill next; nothing if it is over, or of the payload if nothing changed.
  std::vector<std::span<std::byte>> header() {
    if (is_over()) return {};
    header_ = Array<std::byte>::uninitialized(
        static_cast<size_t>(delta_header_bytes(piece_sizes(target()))), kernels_.device());
    return {{header_.data(), header_.size()}};
  }
  std::vector<std::span<std::byte>> payload() {
    if (is_over()) return {};
    const Array<std::byte> header = header_.to(DeviceKind::kCpu);
    decoder_.emplace(kernels_, std::span(header.data(), header.size()), target());
    return decoder_->payload();
  }
  // Returns the pieces that are whole now.
  PieceRange apply() {
    if (is_over()) return {};
    decoder_->apply(ConstPieces(base_).subspan(range().begin, target().size()));
    decoder_.reset();
    return ranges_[next_++];
  }

 private:
  const PieceRange& range() const { return ranges_[next_]; }
  Pieces target() const {
    return Pieces(edge_.pieces).subspan(range().begin, range().end - range().begin);
  }
  const kernels::WeightKernels& kernels_;
  const IncomingEdge& edge_;
  const std::vector<std::span<const std::byte>> base_;
  const std::vector<PieceRange> ranges_;
  size_t next_ = 0;
  Array<std::byte> header_;
  std::optional<DeltaDecoder> decoder_;
};

}  // namespace

ReceiveAttempt::ReceiveAttempt(const ReceivingEnd& end, const Transaction& transaction,
                               SyncPlan plan, std::shared_ptr<const ResidentWeights> base)
    : end_(end), transaction_(transaction), plan_(std::move(plan)), base_(std::move(base)) {
  for (const Edge& edge : plan_.edges) {
    edges_.push_back({edge.sender, {}});
    hashes_.emplace_back(edge.slices.size());
    const bool omits = transaction_.omits_frozen;
    travelling_.push_back(travelling_slices(end_.manifest, edge, omits));
    expected_bytes_ += travelling_bytes(end_.manifest, edge, omits);
  }
}

bool ReceiveAttempt::is_flip() const {
  return end_.own_sender && plan_.edges.size() == 1 && plan_.edges[0].sender == *end_.own_sender &&
         end_.destination == replica_slices(end_.manifest);
}

void ReceiveAttempt::set_shadow(std::shared_ptr<ResidentWeights> shadow,
                                std::shared_ptr<FrozenRows> frozen) {
  frozen_ = std::move(frozen);
  if (frozen_) {
    for (int64_t p = 0; p < end_.table.size(); ++p) {
      if (!end_.table.at(p).is_frozen) continue;
      shadow->stored(p) = frozen_->parameters[static_cast<size_t>(p)].shared();
    }
  }
  ResidentWeights* const weights = shadow.get();
  // Whoever holds the weights holds what they have views of.
  shadow_ = {weights, [shadow = std::move(shadow), kept = frozen_](ResidentWeights*) mutable {
               shadow.reset();
               kept.reset();
             }};
  weights_ = shadow_;
  const auto tensors = shard_tensors(end_.manifest, shadow_->parameters(), end_.destination);
  for (size_t e = 0; e < edges_.size(); ++e) {
    edges_[e].pieces.clear();
    const auto pieces = edge_pieces(end_.manifest, plan_.edges[e], tensors);
    for (const size_t i : travelling_[e]) {
      // The shadow's own memory, which is ours to write.
      edges_[e].pieces.emplace_back(const_cast<std::byte*>(pieces[i].data()), pieces[i].size());
    }
  }
}

std::shared_ptr<FrozenRows> ReceiveAttempt::frozen() const { return frozen_; }

// What does not travel, hashed once for every cut of it.
void ReceiveAttempt::hash_omitted(HashBatch& hashes) {
  if (!transaction_.omits_frozen) return;
  const auto tensors = shard_tensors(end_.manifest, shadow_->parameters(), end_.destination);
  for (size_t e = 0; e < edges_.size(); ++e) {
    const Edge& edge = plan_.edges[e];
    const auto pieces = edge_pieces(end_.manifest, edge, tensors);
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (!end_.manifest.at(edge.slices[i].slice.tensor).is_frozen) continue;
      const auto known = frozen_->hashes.find(place_of(edge.slices[i].slice));
      if (known != frozen_->hashes.end()) {
        hashes_[e][i] = known->second;
        continue;
      }
      const Segment whole{static_cast<int64_t>(i), 0, std::ssize(pieces[i])};
      hashes.add(end_.manifest, edge.slices[i], whole, pieces[i], &hashes_[e][i]);
    }
  }
}

void ReceiveAttempt::hash(HashBatch& hashes, size_t edge, const Segment& segment,
                          std::span<const std::byte> piece) {
  const size_t i = travelling_[edge][static_cast<size_t>(segment.piece)];
  hashes.add(end_.manifest, plan_.edges[edge].slices[i], segment, piece, &hashes_[edge][i]);
  arrived_bytes_ += segment.bytes;
}

void ReceiveAttempt::take_held(const HeldPacking& held) {
  const auto tensors = shard_tensors(end_.manifest, *held.parameters,
                                     owned_slices(end_.manifest, end_.table, held.mesh, held.rank));
  DeviceMemory& memory = device_memory(end_.kernels.device());
  HashBatch hashes(end_.kernels, plan_.sizes.bucket_bytes);
  for (size_t e = 0; e < edges_.size(); ++e) {
    if (edges_[e].sender != held.rank) continue;
    const auto pieces = edge_pieces(end_.manifest, plan_.edges[e], tensors);
    std::vector<std::span<const std::byte>> source;
    for (const size_t i : travelling_[e]) source.push_back(pieces[i]);
    const auto& target = edges_[e].pieces;  // empty in a flip
    for (size_t i = 0; i < target.size(); ++i) {
      memory.copy(target[i].data(), source[i].data(), std::ssize(source[i]));
    }
    memory.finish();
    for (size_t i = 0; i < source.size(); ++i) {
      const Segment whole{static_cast<int64_t>(i), 0, std::ssize(source[i])};
      hash(hashes, e, whole, target.empty() ? source[i] : target[i]);
    }
  }
  hashes.flush();
  if (!is_flip()) return;
  weights_ = std::make_shared<ResidentWeights>(end_.table, end_.plan, held.parameters,
                                               end_.kernels.device());
}

// Range by range of every edge: headers, which say how long the rest is; then that; then the shadow
// from what is served.
void ReceiveAttempt::receive_delta(std::span<const size_t> edges, Transport& transport,
                                   HashBatch& hashes, Deadline deadline) {
  const auto base =
      shard_tensors(end_.manifest, (base_ ? *base_ : *shadow_).parameters(), end_.destination);
  std::vector<DeltaStream> streams;
  streams.reserve(edges.size());
  for (const size_t e : edges) {
    const auto pieces = edge_pieces(end_.manifest, plan_.edges[e], base);
    std::vector<std::span<const std::byte>> before;
    for (const size_t i : travelling_[e]) before.push_back(pieces[i]);
    streams.emplace_back(end_.kernels, edges_[e], std::move(before), plan_.sizes);
  }
  const auto receive = [&](const auto& incoming_of) {
    std::vector<IncomingEdge> incoming;
    for (DeltaStream& stream : streams) {
      IncomingEdge edge{stream.sender(), incoming_of(stream)};
      if (!edge.pieces.empty()) incoming.push_back(std::move(edge));
    }
    transport.receive(
        incoming, plan_.sizes, [](size_t, const Segment&) {}, deadline);
  };
  const auto is_over = [](const DeltaStream& stream) { return stream.is_over(); };
  while (!std::all_of(streams.begin(), streams.end(), is_over)) {
    receive([](DeltaStream& stream) { return stream.header(); });
    receive([](DeltaStream& stream) { return stream.payload(); });
    for (size_t s = 0; s < streams.size(); ++s) {
      const PieceRange done = streams[s].apply();
      for (size_t i = done.begin; i < done.end; ++i) {
        const auto piece = edges_[edges[s]].pieces[i];
        hash(hashes, edges[s], {static_cast<int64_t>(i), 0, std::ssize(piece)}, piece);
      }
    }
  }
}

void ReceiveAttempt::receive(Transport& transport, Deadline deadline) {
  std::vector<IncomingEdge> edges;
  std::vector<size_t> place;  // in the plan
  for (size_t e = 0; e < edges_.size(); ++e) {
    if (end_.own_sender == edges_[e].sender || edges_[e].pieces.empty()) continue;
    edges.push_back(edges_[e]);
    place.push_back(e);
  }
  HashBatch hashes(end_.kernels, plan_.sizes.bucket_bytes);
  hash_omitted(hashes);
  if (transaction_.base_version != 0) {
    receive_delta(place, transport, hashes, deadline);
  } else {
    transport.receive(
        edges, plan_.sizes,
        [&](size_t edge, const Segment& segment) {
          hash(hashes, place[edge], segment,
               edges[edge].pieces[static_cast<size_t>(segment.piece)]);
        },
        deadline);
  }
  hashes.flush();
  if (!frozen_) return;
  for (size_t e = 0; e < edges_.size(); ++e) {
    for (size_t i = 0; i < hashes_[e].size(); ++i) {
      const Slice& slice = plan_.edges[e].slices[i].slice;
      if (end_.manifest.at(slice.tensor).is_frozen)
        frozen_->hashes[place_of(slice)] = hashes_[e][i];
    }
  }
}

void ReceiveAttempt::check_report(size_t edge_index, std::span<const SenderReport> reports) const {
  const Edge& edge = plan_.edges[edge_index];
  const SenderReport* report = nullptr;
  for (const SenderReport& candidate : reports) {
    if (candidate.sender == edge.sender) report = &candidate;
  }
  const int64_t version = transaction_.version;
  const Slice& first = edge.slices.front().slice;
  if (report == nullptr || report->slices.size() != edge.slices.size()) {
    fail(
        ErrorCode::kDataLoss,
        "version {}: sender {} reported {} slices of {}, the first of them rows [{}, {}) of tensor "
        "'{}'",
        version, edge.sender, report == nullptr ? 0 : report->slices.size(), edge.slices.size(),
        first.row_begin, first.row_end, end_.manifest.at(first.tensor).name);
  }
  if (report->transaction != transaction_) {
    fail(ErrorCode::kDataLoss, "version {}: sender {} sent version {} of epoch {}", version,
         edge.sender, report->transaction.version, report->transaction.epoch);
  }
  for (size_t i = 0; i < edge.slices.size(); ++i) {
    const Slice& planned = edge.slices[i].slice;
    const SliceHash& sent = report->slices[i];
    if (sent.slice == planned && sent.hash == hashes_[edge_index][i]) continue;
    fail(ErrorCode::kDataLoss,
         "version {}: rows [{}, {}) of tensor '{}' from sender {} {}; nothing of this version is "
         "served",
         version, planned.row_begin, planned.row_end, end_.manifest.at(planned.tensor).name,
         edge.sender,
         sent.slice == planned ? "arrived with other contents than were sent"
                               : "were planned, but the sender reports another slice");
  }
}

std::vector<quant::ContentHash> ReceiveAttempt::verify(
    std::span<const SenderReport> reports) const {
  std::vector<Slice> written;
  std::vector<quant::ContentHash> tensor_hashes(end_.manifest.tensors.size());
  for (size_t e = 0; e < plan_.edges.size(); ++e) {
    const std::vector<PlannedSlice>& slices = plan_.edges[e].slices;
    check_report(e, reports);
    for (size_t i = 0; i < slices.size(); ++i) {
      written.push_back(slices[i].slice);
      tensor_hashes[static_cast<size_t>(slices[i].slice.tensor)] += hashes_[e][i];
    }
  }
  const auto problem = coverage_problem(end_.manifest, written, end_.destination);
  if (problem) fail(ErrorCode::kDataLoss, "version {}: {}", transaction_.version, *problem);
  if (arrived_bytes_ != expected_bytes_) {
    fail(ErrorCode::kDataLoss, "version {}: {} bytes arrived, the plan has {}",
         transaction_.version, arrived_bytes_.load(), expected_bytes_);
  }
  return tensor_hashes;
}

}  // namespace nibble
