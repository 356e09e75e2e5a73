#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "coordinator/placement.h"
#include "core/base/clock.h"

namespace nibble {

enum class WorkerRole { kTrainer, kRollout, kBoth };

/// A worker of the job, as it registered.
struct Member {
  WorkerRole role = WorkerRole::kTrainer;
  int index = 0;        ///< rank among trainers, or engine number; kBoth: both
  std::string id;       ///< "trainer/0", "rollout/0", "worker/0"
  std::string address;  ///< host:port of its services
  std::string host;
  int rendezvous_port = 0;  ///< where a process group may meet at it
  int64_t pid = 0;
};

/// A look at a member.
struct MemberView {
  Member member;
  std::chrono::milliseconds heartbeat_age{0};  ///< since it joined or last renewed its lease
  bool is_up = false;                          ///< its server answers
};

/// Who belongs to the job. Workers get their roles in the order in which they come, trainer ranks
/// first; colocated ones all get both. A worker whose lease runs out is lost. Any thread may call
/// any method.
class Membership {
 public:
  /// Colocated workers need as many engines as trainers.
  Membership(int num_trainers, int num_engines, std::chrono::milliseconds lease,
             Placement placement = Placement::kSeparate);

  /// Throws Error{kFailedPrecondition} if all roles are taken.
  Member join(Member candidate);
  /// Throws Error{kFailedPrecondition} for an unknown worker or one whose lease had run out.
  void renew(const std::string& id);

  /// Waits until all roles are taken and their workers serve. Throws Error{kDeadlineExceeded}
  /// naming how many are missing, Error{kCancelled} after stop().
  void wait_complete(Deadline deadline);
  /// Throws Error{kUnavailable} naming the first worker whose lease has run out.
  void check_leases() const;

  /// Names a process of this machine for people: "trainer/0 (pid 123)".
  std::string describe_process(int64_t pid) const;

  std::vector<Member> trainers() const;
  std::vector<Member> engines() const;
  std::vector<MemberView> views() const;  ///< all, in the order in which they joined
  int64_t epoch() const { return epoch_; }
  std::chrono::milliseconds lease() const { return lease_; }

  /// The job is over: workers are told so at their next heartbeat, waiters end.
  void stop();
  /// After stop(): waits until every worker has been told, or has lost its lease. False: not all of
  /// them by `deadline`.
  bool wait_told(Deadline deadline);
  bool stopped() const;

 private:
  struct Entry {
    Member member;
    SteadyClock::time_point renewed;
    bool serving = false;  // its first heartbeat says that its server is up
    bool told = false;     // it has asked since the job is over
  };
  std::vector<Member> members_but(WorkerRole other) const;

  const int num_trainers_;
  const Placement placement_;
  const int num_workers_;
  const std::chrono::milliseconds lease_;
  const int64_t epoch_ = 1;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Entry> entries_;  // guarded by mutex_
  bool stopped_ = false;        // guarded by mutex_
};

}  // namespace nibble
