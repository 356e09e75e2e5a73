#pragma once

#include "core/comm/process_group.h"
#include "weight_sync/transport.h"

namespace nibble {

/// Sends and receives of a process group in host memory (Gloo over TCP), one group per receiver:
/// the senders at their ranks of the plan, the receiver at `receiver_rank`. At most two buckets of
/// an edge are in flight; a packed bucket is copied while the other is on the wire. After a throw
/// the group is spent too. `group` must outlive this.
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
  ProcessGroup& group_;
  int receiver_rank_;
};

}  // namespace nibble
