#include "weight_sync/group_transport.h"

#include <deque>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr int kWeightTag = 1;

// Runs a call on the group; an error says which edge it belongs to.
template <typename Call>
auto on_edge(const char* peer, int rank, Call&& call) {
  try {
    return call();
  } catch (const Error& error) {
    fail(error.code(), "weights, {} {}: {}", peer, rank, error.what());
  }
}

}  // namespace

std::span<std::byte> GroupTransport::Staging::take(int64_t bytes, DeviceKind device) {
  if (bytes > memory.num_bytes()) {
    memory = Array<std::byte>::uninitialized(static_cast<size_t>(bytes), device);
  }
  return {memory.data(), static_cast<size_t>(bytes)};
}

// The transfers of one edge that are on the wire, oldest first: at most two buckets' bytes, at most
// two packed buckets. Small direct buckets thus travel many at a time, which hides the hand-shake
// that Gloo makes for each.
class GroupTransport::InFlight {
 public:
  InFlight(StagingPair& staging, const TransferSizes& sizes, DeviceKind device)
      : staging_(staging), device_(device), max_bytes_(kMaxInflightBuckets * sizes.bucket_bytes) {}

  bool empty() const { return transfers_.empty(); }
  bool has_room_for(const Bucket& bucket) const {
    if (transfers_.empty()) return true;
    return bytes_ + bucket.bytes <= max_bytes_ &&
           !(bucket.is_packed() && num_packed_ == kMaxInflightBuckets);
  }
  // The staging memory of the next packed bucket.
  std::span<std::byte> stage(const Bucket& bucket) {
    return staging_[next_staging_++ % kMaxInflightBuckets].take(bucket.bytes, device_);
  }
  void push(const Bucket& bucket, std::span<std::byte> staged,
            std::unique_ptr<PendingTransfer> pending) {
    transfers_.push_back({&bucket, staged, std::move(pending)});
    bytes_ += bucket.bytes;
    num_packed_ += bucket.is_packed() ? 1 : 0;
  }

  struct Done {
    const Bucket* bucket;
    std::span<std::byte> staged;  // valid until the next but one packed bucket is staged
  };
  Done wait_for_oldest(Deadline deadline, const char* peer, int rank) {
    const Transfer& oldest = transfers_.front();
    on_edge(peer, rank, [&] { oldest.pending->wait_until(deadline); });
    const Done done{oldest.bucket, oldest.staged};
    bytes_ -= done.bucket->bytes;
    num_packed_ -= done.bucket->is_packed() ? 1 : 0;
    transfers_.pop_front();
    return done;
  }

 private:
  struct Transfer {
    const Bucket* bucket;
    std::span<std::byte> staged;
    std::unique_ptr<PendingTransfer> pending;
  };
  StagingPair& staging_;
  const DeviceKind device_;
  const int64_t max_bytes_;
  std::deque<Transfer> transfers_;
  int64_t bytes_ = 0;
  int num_packed_ = 0;
  size_t next_staging_ = 0;
};

// One sender's stream into the receiver.
class GroupTransport::Incoming {
 public:
  Incoming(ProcessGroup& group, const IncomingEdge& edge, StagingPair& staging,
           const TransferSizes& sizes, DeviceKind device)
      : group_(group),
        edge_(edge),
        device_(device),
        buckets_(plan_buckets(Pieces(edge.pieces), sizes)),
        in_flight_(staging, sizes, device) {
    post_all_that_fit();
  }
  bool done() const { return in_flight_.empty(); }

  // Waits for the oldest bucket, puts it in place and asks for more.
  const Bucket& take(Deadline deadline) {
    const InFlight::Done done = in_flight_.wait_for_oldest(deadline, "sender", edge_.sender);
    if (done.bucket->is_packed()) {
      unpack(*done.bucket, done.staged, edge_.pieces, device_memory(device_));
      device_memory(device_).finish();
    }
    post_all_that_fit();
    return *done.bucket;
  }

 private:
  void post_all_that_fit() {
    for (; posted_ < buckets_.size() && in_flight_.has_room_for(buckets_[posted_]); ++posted_) {
      const Bucket& bucket = buckets_[posted_];
      std::span<std::byte> staged;
      if (bucket.is_packed()) staged = in_flight_.stage(bucket);
      const auto memory =
          bucket.is_packed() ? staged : segment_bytes(edge_.pieces, bucket.segments[0]);
      auto pending = on_edge("sender", edge_.sender,
                             [&] { return group_.receive(memory, edge_.sender, kWeightTag); });
      in_flight_.push(bucket, staged, std::move(pending));
    }
  }

  ProcessGroup& group_;
  const IncomingEdge& edge_;
  const DeviceKind device_;
  const std::vector<Bucket> buckets_;
  InFlight in_flight_;
  size_t posted_ = 0;
};

void GroupTransport::send(std::span<const std::span<const std::byte>> pieces,
                          const TransferSizes& sizes, const SentHandler& on_sent,
                          Deadline deadline) {
  const std::vector<Bucket> buckets = plan_buckets(pieces, sizes);
  InFlight in_flight(staging_[receiver_rank_], sizes, device_);
  for (const Bucket& bucket : buckets) {
    while (!in_flight.has_room_for(bucket)) {
      in_flight.wait_for_oldest(deadline, "receiver", receiver_rank_);
    }
    std::span<std::byte> staged;
    std::span<const std::byte> bytes = segment_bytes(pieces, bucket.segments[0]);
    if (bucket.is_packed()) {
      staged = in_flight.stage(bucket);
      pack(bucket, pieces, staged, device_memory(device_));
      bytes = staged;
    }
    auto pending = on_edge("receiver", receiver_rank_,
                           [&] { return group_.send(bytes, receiver_rank_, kWeightTag); });
    in_flight.push(bucket, staged, std::move(pending));
    for (const Segment& segment : bucket.segments) on_sent(segment);
  }
  while (!in_flight.empty()) in_flight.wait_for_oldest(deadline, "receiver", receiver_rank_);
}

void GroupTransport::receive(std::span<const IncomingEdge> edges, const TransferSizes& sizes,
                             const ArrivalHandler& on_arrival, Deadline deadline) {
  std::vector<std::unique_ptr<Incoming>> incoming;
  for (const IncomingEdge& edge : edges) {
    incoming.push_back(
        std::make_unique<Incoming>(group_, edge, staging_[edge.sender], sizes, device_));
  }
  bool more = !edges.empty();
  while (more) {
    more = false;
    for (size_t e = 0; e < edges.size(); ++e) {
      if (incoming[e]->done()) continue;
      const Bucket& bucket = incoming[e]->take(deadline);
      for (const Segment& segment : bucket.segments) on_arrival(e, segment);
      more = more || !incoming[e]->done();
    }
  }
}

}  // namespace nibble
