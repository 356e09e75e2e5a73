#include "weight_sync/local_transport.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr size_t kMaxInflightBuckets = 2;

// What all ends share.
class Link {
 public:
  explicit Link(int num_senders) : queues_(static_cast<size_t>(num_senders)) {}

  void push(int sender, std::vector<std::byte> bucket, Deadline deadline) {
    std::unique_lock lock(mutex_);
    auto& queue = queues_[static_cast<size_t>(sender)];
    const bool in_time = changed_.wait_until(
        lock, deadline.time(), [&] { return aborted_ || queue.size() < kMaxInflightBuckets; });
    check(in_time, "the receiver took nothing from", sender);
    queue.push_back(std::move(bucket));
    changed_.notify_all();
  }

  std::vector<std::byte> pop(int sender, Deadline deadline) {
    std::unique_lock lock(mutex_);
    auto& queue = queues_[static_cast<size_t>(sender)];
    const bool in_time =
        changed_.wait_until(lock, deadline.time(), [&] { return aborted_ || !queue.empty(); });
    check(in_time, "nothing came from", sender);
    std::vector<std::byte> bucket = std::move(queue.front());
    queue.pop_front();
    changed_.notify_all();
    return bucket;
  }

  void abort() {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    changed_.notify_all();
  }

 private:
  void check(bool in_time, const char* what, int sender) const {
    if (aborted_) {
      fail(ErrorCode::kUnavailable, "the local transfer from sender {} was aborted", sender);
    }
    if (!in_time) {
      fail(ErrorCode::kDeadlineExceeded, "{} sender {} before the deadline", what, sender);
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::deque<std::vector<std::byte>>> queues_;  // guarded by mutex_
  bool aborted_ = false;                                    // guarded by mutex_
};

class LocalTransport final : public Transport {
 public:
  // Shared: the ends have no common owner.
  LocalTransport(std::shared_ptr<Link> link, int rank) : link_(std::move(link)), rank_(rank) {}

  void send(std::span<const std::span<const std::byte>> pieces, const TransferSizes& sizes,
            const SentHandler& on_sent, Deadline deadline) override {
    for (const Bucket& bucket : plan_buckets(pieces, sizes)) {
      std::vector<std::byte> bytes(static_cast<size_t>(bucket.bytes));
      pack(bucket, pieces, bytes);
      link_->push(rank_, std::move(bytes), deadline);
      for (const Segment& segment : bucket.segments) on_sent(segment);
    }
  }

  void receive(std::span<const IncomingEdge> edges, const TransferSizes& sizes,
               const ArrivalHandler& on_arrival, Deadline deadline) override {
    std::vector<std::vector<Bucket>> buckets;
    size_t rounds = 0;
    for (const IncomingEdge& edge : edges) {
      buckets.push_back(plan_buckets(Pieces(edge.pieces), sizes));
      rounds = std::max(rounds, buckets.back().size());
    }
    for (size_t round = 0; round < rounds; ++round) {
      for (size_t e = 0; e < edges.size(); ++e) {
        if (round >= buckets[e].size()) continue;
        const Bucket& bucket = buckets[e][round];
        const std::vector<std::byte> bytes = link_->pop(edges[e].sender, deadline);
        NIBBLE_CHECK(static_cast<int64_t>(bytes.size()) == bucket.bytes,
                     "sender {} sent a bucket of {} bytes, the plan says {}", edges[e].sender,
                     bytes.size(), bucket.bytes);
        unpack(bucket, bytes, edges[e].pieces);
        for (const Segment& segment : bucket.segments) on_arrival(e, segment);
      }
    }
  }

  void abort() noexcept override { link_->abort(); }

 private:
  std::shared_ptr<Link> link_;
  int rank_;
};

}  // namespace

LocalTransports make_local_transports(int num_senders) {
  auto link = std::make_shared<Link>(num_senders);
  LocalTransports ends;
  for (int rank = 0; rank < num_senders; ++rank) {
    ends.senders.push_back(std::make_unique<LocalTransport>(link, rank));
  }
  ends.receiver = std::make_unique<LocalTransport>(link, -1);
  return ends;
}

}  // namespace nibble
