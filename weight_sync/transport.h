#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/base/clock.h"
#include "weight_sync/bucket_plan.h"

namespace nibble {

/// Where one sender's pieces go: memory in the order of the plan's edge.
struct IncomingEdge {
  int sender = 0;  ///< rank in the plan
  std::vector<std::span<std::byte>> pieces;
};

/// Called on the calling thread for each segment while later ones are on the wire.
using SentHandler = std::function<void(const Segment&)>;
using ArrivalHandler = std::function<void(size_t edge, const Segment&)>;

/// One rank's end of the way between the senders of a plan and its one receiver. Each sender calls
/// send() once and the receiver receive() once per transaction, with the plan's sizes. One
/// thread per end, but for abort(). After a throw or an abort the way is spent on every end: the
/// next attempt needs new ones.
class Transport {
 public:
  virtual ~Transport() = default;
  /// Returns when the bytes are on their way for good; they must live until then. Throws
  /// Error{kDeadlineExceeded} naming the receiver, Error{kUnavailable} if it is gone or after
  /// abort().
  virtual void send(std::span<const std::span<const std::byte>> pieces, const TransferSizes& sizes,
                    const SentHandler& on_sent, Deadline deadline) = 0;
  /// Returns when every byte of every edge is in place. Throws Error{kDeadlineExceeded} naming the
  /// sender, Error{kUnavailable} if it is gone or after abort().
  virtual void receive(std::span<const IncomingEdge> edges, const TransferSizes& sizes,
                       const ArrivalHandler& on_arrival, Deadline deadline) = 0;
  /// Makes pending and later calls throw Error{kUnavailable}. Safe from any thread.
  virtual void abort() noexcept = 0;
};

}  // namespace nibble
