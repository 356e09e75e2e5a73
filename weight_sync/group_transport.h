#pragma once

#include <array>
#include <map>
#include <memory>

#include "core/base/array.h"
#include "core/comm/process_group.h"
#include "weight_sync/transport.h"

namespace nibble {

/// Sends and receives of a process group (Gloo over TCP, NCCL), one group per receiver: the senders
/// at their ranks of the plan, the receiver at `receiver_rank`. Pieces are in the memory that the
/// group moves: the host's, or `device`'s. At most two buckets'
/// bytes of an edge are in flight; a packed bucket is copied while the other is on the wire. Keep
/// it for as long as the group: staging memory is allocated once. After a throw the group is spent
/// too. `group` must outlive this.
class GroupTransport final : public Transport {
 public:
  GroupTransport(ProcessGroup& group, int receiver_rank, DeviceKind device = DeviceKind::kCpu)
      : group_(group), receiver_rank_(receiver_rank), device_(device) {}
  void send(std::span<const std::span<const std::byte>> pieces, const TransferSizes& sizes,
            const SentHandler& on_sent, Deadline deadline) override;
  void receive(std::span<const IncomingEdge> edges, const TransferSizes& sizes,
               const ArrivalHandler& on_arrival, Deadline deadline) override;
  void abort() noexcept override { group_.abort(); }

 private:
  // Memory that one packed bucket is copied through.
  struct Staging {
    Array<std::byte> memory;
    std::span<std::byte> take(int64_t bytes, DeviceKind device);
  };
  static constexpr size_t kMaxInflightBuckets = 2;
  using StagingPair = std::array<Staging, kMaxInflightBuckets>;
  class InFlight;
  class Incoming;

  ProcessGroup& group_;
  int receiver_rank_;
  DeviceKind device_;
  std::map<int, StagingPair> staging_;  // by peer
};

}  // namespace nibble
