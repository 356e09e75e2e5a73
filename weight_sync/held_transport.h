#pragma once

#include "weight_sync/transport.h"

namespace nibble {

/// A sender's end where the receiver is in the same process and takes the bytes from where they
/// are: nothing is sent, the sender hashes what it offers. Holds no state.
class HeldTransport final : public Transport {
 public:
  void send(std::span<const std::span<const std::byte>> pieces, const TransferSizes& sizes,
            const SentHandler& on_sent, Deadline deadline) override;
  /// Our bug: a receiver without remote senders has no transport.
  void receive(std::span<const IncomingEdge> edges, const TransferSizes& sizes,
               const ArrivalHandler& on_arrival, Deadline deadline) override;
  void abort() noexcept override {}
};

}  // namespace nibble
