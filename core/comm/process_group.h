#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/clock.h"

namespace nibble {

/// A communication in flight. The buffers it was given must live until wait() returns or throws.
class PendingTransfer {
 public:
  virtual ~PendingTransfer() = default;
  /// Returns when the data has arrived. Throws Error{kDeadlineExceeded} after the group's timeout,
  /// Error{kUnavailable} when a peer is gone or the group was aborted; both name group and
  /// operation.
  virtual void wait() = 0;
  /// What the calling thread enqueues on its device from now on follows the transfer; where the
  /// bytes are the host's, this is wait(). May return before the data has arrived: the group ends
  /// what misses its timeout, and check() then says so. The buffers must live until what was
  /// enqueued has run.
  virtual void join() { wait(); }
  /// wait() under the caller's deadline instead of the group's timeout. A group that missed a
  /// deadline is spent: its other transfers fail too.
  virtual void wait_until(Deadline deadline) = 0;
};

/// Ranks that exchange bytes. Collectives must be called by all ranks in the same order; one
/// thread per group.
class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  virtual int rank() const = 0;
  virtual int world() const = 0;
  virtual const std::string& name() const = 0;

  /// out = every rank's `local`, by rank. All ranks pass the same size; out.size() is world times
  /// that. Collective.
  virtual std::unique_ptr<PendingTransfer> all_gather(std::span<const std::byte> local,
                                                      std::span<std::byte> out) = 0;
  /// Part r of `send` (send_bytes[r] bytes) goes to rank r; `recv` gets the parts by source rank.
  /// Collective.
  virtual std::unique_ptr<PendingTransfer> all_to_all(std::span<const std::byte> send,
                                                      std::span<const int64_t> send_bytes,
                                                      std::span<std::byte> recv,
                                                      std::span<const int64_t> recv_bytes) = 0;
  /// Point to point; matched by (peer, tag), in order.
  virtual std::unique_ptr<PendingTransfer> send(std::span<const std::byte> bytes, int peer,
                                                int tag) = 0;
  virtual std::unique_ptr<PendingTransfer> receive(std::span<std::byte> bytes, int peer,
                                                   int tag) = 0;
  /// Throws what became of a transfer that was joined, if it failed. To be called when the device
  /// has run what followed it, before its results are used.
  virtual void check() const {}
  /// Makes pending and later waits on sends and receives throw Error{kUnavailable}, and later calls
  /// too; a collective that is waited on ends by its own timeout. Safe from any thread.
  virtual void abort() noexcept = 0;
};

/// Where the ranks of a group meet. One rank hosts the store, the others connect to it.
struct Rendezvous {
  std::string host = "127.0.0.1";
  int port = 0;
  std::string group_name;  ///< unique among groups that meet at one store
  std::chrono::milliseconds timeout{60'000};
  std::chrono::milliseconds transfer_timeout{0};  ///< of each transfer later on; 0: `timeout`
};

/// The TCP key-value store that groups meet at; lives as long as any group made through it.
class RendezvousServer {
 public:
  /// Binds any free port of the loopback interface unless `port` is given. Throws
  /// Error{kResourceExhausted} if it is taken.
  explicit RendezvousServer(int port = 0);
  ~RendezvousServer();
  int port() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Joins a Gloo group over TCP. Returns when all `world` ranks are there; throws
/// Error{kDeadlineExceeded} naming the group if they are not within the timeout. From the first
/// group on the process ignores SIGPIPE, unless it has a handler: Gloo would die of a lost peer.
std::unique_ptr<ProcessGroup> join_gloo_group(const Rendezvous& rendezvous, int rank, int world);

/// A group of one: copies locally.
std::unique_ptr<ProcessGroup> solo_group(const std::string& name);

}  // namespace nibble
