#pragma once

#include <array>
#include <map>
#include <memory>

#include "core/comm/process_group.h"
#include "weight_sync/transport.h"

namespace nibble {

/// Sends and receives of a process group in host memory (Gloo over TCP), one group per receiver:
/// the senders at their ranks of the plan, the receiver at `receiver_rank`. At most two buckets'
/// bytes of an edge are in flight; a packed bucket is copied while the other is on the wire. Keep
/// it for as long as the group: staging memory is allocated once. After a throw the group is spent
/// too. `group` must outlive this.
class GlooTransport final : public Transport {
 public:
  GlooTransport(ProcessGroup& group, int receiver_rank)
      : group_(group), receiver_rank_(receiver_rank) {}
  void send(std::span<const std::span<const std::byte>> pieces, int64_t bucket_bytes,
            const SentHandler& on_sent, Deadline deadline) override;
  void receive(std::span<const IncomingEdge> edges, int64_t bucket_bytes,
               const ArrivalHandler& on_arrival, Deadline deadline) override;
  void abort() noexcept override { group_.abort(); }

 private:
  // Memory that one packed bucket is copied through.
  struct Staging {
    std::unique_ptr<std::byte[]> memory;
    int64_t capacity = 0;
    std::span<std::byte> take(int64_t bytes);
  };
  static constexpr size_t kMaxInflightBuckets = 2;
  using StagingPair = std::array<Staging, kMaxInflightBuckets>;
  class InFlight;
  class Incoming;

  ProcessGroup& group_;
  int receiver_rank_;
  std::map<int, StagingPair> staging_;  // by peer
};

}  // namespace nibble
