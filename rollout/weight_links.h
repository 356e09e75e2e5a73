#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>

#include "core/base/clock.h"
#include "core/comm/process_group.h"
#include "core/comm_cuda/gpu_group.h"
#include "weight_sync/transport.h"

namespace nibble {

/// An engine's ways to those who send it weights, and whom it sends them to. Any thread may call
/// any method.
class WeightLinks {
 public:
  enum class Whom { kTrainers, kPeer };
  /// A way: kept by whoever moves bytes over it, also when a new one has taken its place.
  struct Link {
    std::unique_ptr<ProcessGroup> group;
    std::unique_ptr<Transport> transport;
  };

  /// `engine`: its number, for messages. `on_gpu`: bytes lie in GPU memory, which `wire` carries.
  WeightLinks(int engine, bool on_gpu, GpuWire wire)
      : engine_(engine), on_gpu_(on_gpu), wire_(wire) {}

  /// Meets the others anew; `receiver` is the rank that receives. The link before ends first, if a
  /// transfer still waits there.
  void join(Whom whom, const Rendezvous& rendezvous, int rank, int world, int receiver);
  /// Throws Error{kFailedPrecondition} if they have not met.
  std::shared_ptr<Link> at(Whom whom);

  /// A transfer to a peer, while it lasts: it holds the weights of `version`. Make it before what
  /// holds them, so that it ends after.
  class Sending {
   public:
    Sending(WeightLinks& links, std::shared_ptr<Link> link, int64_t version);
    ~Sending();
    Sending(const Sending&) = delete;
    Sending& operator=(const Sending&) = delete;

   private:
    friend class WeightLinks;
    WeightLinks& links_;
    const std::shared_ptr<Link> link_;
    const int64_t version_;
  };
  /// Breaks off transfers to peers of versions below `version`, and waits for them to let go, at
  /// most until `deadline`.
  void end_sendings_before(int64_t version, Deadline deadline);

 private:
  const int engine_;
  const bool on_gpu_;
  const GpuWire wire_;
  std::mutex mutex_;
  std::array<std::shared_ptr<Link>, 2> links_;  // guarded by mutex_, like the next; by Whom
  std::set<const Sending*> sendings_;
  std::condition_variable sending_ended_;
};

}  // namespace nibble
