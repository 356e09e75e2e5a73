#include "weight_sync/gloo_transport.h"

#include <array>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kMaxInflightBuckets = 2;
constexpr int kWeightTag = 1;

// A bucket in flight. The transfer is destroyed before the memory that it uses.
struct Slot {
  std::vector<std::byte> staging;
  std::unique_ptr<PendingTransfer> pending;
};

// Says which edge a failed wait belongs to.
void wait_for_peer(PendingTransfer& pending, Deadline deadline, const char* peer, int rank) {
  try {
    pending.wait_until(deadline);
  } catch (const Error& error) {
    fail(error.code(), "weights, {} {}: {}", peer, rank, error.what());
  }
}

// One sender's stream into the receiver.
class Incoming {
 public:
  Incoming(ProcessGroup& group, const IncomingEdge& edge, int64_t bucket_bytes)
      : group_(group), edge_(edge), buckets_(plan_buckets(Pieces(edge.pieces), bucket_bytes)) {
    while (posted_ < buckets_.size() && posted_ < kMaxInflightBuckets) post();
  }
  bool done() const { return taken_ == buckets_.size(); }

  // Waits for the oldest bucket, puts it in place and asks for another.
  const Bucket& take(Deadline deadline) {
    const Bucket& bucket = buckets_[taken_];
    Slot& slot = slots_[taken_ % kMaxInflightBuckets];
    wait_for_peer(*slot.pending, deadline, "sender", edge_.sender);
    slot.pending.reset();
    if (bucket.is_packed()) unpack(bucket, slot.staging, edge_.pieces);
    ++taken_;
    if (posted_ < buckets_.size()) post();
    return bucket;
  }

 private:
  void post() {
    const Bucket& bucket = buckets_[posted_];
    Slot& slot = slots_[posted_ % kMaxInflightBuckets];
    slot.pending = group_.receive(memory_of(bucket, slot), edge_.sender, kWeightTag);
    ++posted_;
  }

  std::span<std::byte> memory_of(const Bucket& bucket, Slot& slot) {
    if (!bucket.is_packed()) return segment_bytes(edge_.pieces, bucket.segments[0]);
    slot.staging.resize(static_cast<size_t>(bucket.bytes));
    return slot.staging;
  }

  ProcessGroup& group_;
  const IncomingEdge& edge_;
  std::vector<Bucket> buckets_;
  std::array<Slot, kMaxInflightBuckets> slots_;
  size_t posted_ = 0;
  size_t taken_ = 0;
};

}  // namespace

void GlooTransport::send(std::span<const std::span<const std::byte>> pieces, int64_t bucket_bytes,
                         const SentHandler& on_sent, Deadline deadline) {
  std::array<Slot, kMaxInflightBuckets> slots;
  size_t next = 0;
  for (const Bucket& bucket : plan_buckets(pieces, bucket_bytes)) {
    Slot& slot = slots[next++ % kMaxInflightBuckets];
    if (slot.pending) wait_for_peer(*slot.pending, deadline, "receiver", receiver_rank_);
    slot.pending.reset();
    if (bucket.is_packed()) {
      slot.staging.resize(static_cast<size_t>(bucket.bytes));
      pack(bucket, pieces, slot.staging);
    }
    const std::span<const std::byte> bytes =
        bucket.is_packed() ? slot.staging : segment_bytes(pieces, bucket.segments[0]);
    slot.pending = group_.send(bytes, receiver_rank_, kWeightTag);
    for (const Segment& segment : bucket.segments) on_sent(segment);
  }
  for (Slot& slot : slots) {
    if (slot.pending) wait_for_peer(*slot.pending, deadline, "receiver", receiver_rank_);
  }
}

void GlooTransport::receive(std::span<const IncomingEdge> edges, int64_t bucket_bytes,
                            const ArrivalHandler& on_arrival, Deadline deadline) {
  std::vector<std::unique_ptr<Incoming>> incoming;
  for (const IncomingEdge& edge : edges) {
    incoming.push_back(std::make_unique<Incoming>(group_, edge, bucket_bytes));
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
