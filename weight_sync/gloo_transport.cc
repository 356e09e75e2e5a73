#include "weight_sync/gloo_transport.h"

#include <deque>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr int kWeightTag = 1;

// Says which edge a failed wait belongs to.
void wait_for_peer(PendingTransfer& pending, Deadline deadline, const char* peer, int rank) {
  try {
    pending.wait_until(deadline);
  } catch (const Error& error) {
    fail(error.code(), "weights, {} {}: {}", peer, rank, error.what());
  }
}

}  // namespace

std::span<std::byte> GlooTransport::Staging::take(int64_t bytes) {
  if (bytes > capacity) {
    memory = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(bytes));
    capacity = bytes;
  }
  return {memory.get(), static_cast<size_t>(bytes)};
}

// The transfers of one edge that are on the wire, oldest first: at most two buckets' bytes, at most
// two packed buckets. Small direct buckets thus travel many at a time, which hides the hand-shake
// that Gloo makes for each.
class GlooTransport::InFlight {
 public:
  InFlight(StagingPair& staging, int64_t bucket_bytes)
      : staging_(staging), max_bytes_(kMaxInflightBuckets * bucket_bytes) {}

  bool empty() const { return transfers_.empty(); }
  bool has_room_for(const Bucket& bucket) const {
    if (transfers_.empty()) return true;
    return bytes_ + bucket.bytes <= max_bytes_ &&
           !(bucket.is_packed() && num_packed_ == kMaxInflightBuckets);
  }
  // The staging memory of the next packed bucket.
  std::span<std::byte> stage(const Bucket& bucket) {
    return staging_[next_staging_++ % kMaxInflightBuckets].take(bucket.bytes);
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
    wait_for_peer(*oldest.pending, deadline, peer, rank);
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
  const int64_t max_bytes_;
  std::deque<Transfer> transfers_;
  int64_t bytes_ = 0;
  int num_packed_ = 0;
  size_t next_staging_ = 0;
};

// One sender's stream into the receiver.
class GlooTransport::Incoming {
 public:
  Incoming(ProcessGroup& group, const IncomingEdge& edge, StagingPair& staging,
           int64_t bucket_bytes)
      : group_(group),
        edge_(edge),
        buckets_(plan_buckets(Pieces(edge.pieces), bucket_bytes)),
        in_flight_(staging, bucket_bytes) {
    post_all_that_fit();
  }
  bool done() const { return in_flight_.empty(); }

  // Waits for the oldest bucket, puts it in place and asks for more.
  const Bucket& take(Deadline deadline) {
    const InFlight::Done done = in_flight_.wait_for_oldest(deadline, "sender", edge_.sender);
    if (done.bucket->is_packed()) unpack(*done.bucket, done.staged, edge_.pieces);
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
      in_flight_.push(bucket, staged, group_.receive(memory, edge_.sender, kWeightTag));
    }
  }

  ProcessGroup& group_;
  const IncomingEdge& edge_;
  const std::vector<Bucket> buckets_;
  InFlight in_flight_;
  size_t posted_ = 0;
};

void GlooTransport::send(std::span<const std::span<const std::byte>> pieces, int64_t bucket_bytes,
                         const SentHandler& on_sent, Deadline deadline) {
  const std::vector<Bucket> buckets = plan_buckets(pieces, bucket_bytes);
  InFlight in_flight(staging_[receiver_rank_], bucket_bytes);
  for (const Bucket& bucket : buckets) {
    while (!in_flight.has_room_for(bucket)) {
      in_flight.wait_for_oldest(deadline, "receiver", receiver_rank_);
    }
    std::span<std::byte> staged;
    std::span<const std::byte> bytes = segment_bytes(pieces, bucket.segments[0]);
    if (bucket.is_packed()) {
      staged = in_flight.stage(bucket);
      pack(bucket, pieces, staged);
      bytes = staged;
    }
    in_flight.push(bucket, staged, group_.send(bytes, receiver_rank_, kWeightTag));
    for (const Segment& segment : bucket.segments) on_sent(segment);
  }
  while (!in_flight.empty()) in_flight.wait_for_oldest(deadline, "receiver", receiver_rank_);
}

void GlooTransport::receive(std::span<const IncomingEdge> edges, int64_t bucket_bytes,
                            const ArrivalHandler& on_arrival, Deadline deadline) {
  std::vector<std::unique_ptr<Incoming>> incoming;
  for (const IncomingEdge& edge : edges) {
    incoming.push_back(
        std::make_unique<Incoming>(group_, edge, staging_[edge.sender], bucket_bytes));
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
