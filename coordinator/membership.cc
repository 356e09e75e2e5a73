#include "coordinator/membership.h"

#include <algorithm>

#include "core/base/fail.h"

namespace nibble {
namespace {

const char* role_name(WorkerRole role) {
  switch (role) {
    case WorkerRole::kTrainer:
      return "trainer";
    case WorkerRole::kRollout:
      return "rollout";
    case WorkerRole::kBoth:
      return "worker";
  }
  return "";
}

}  // namespace

Membership::Membership(int num_trainers, int num_engines, std::chrono::milliseconds lease,
                       Placement placement)
    : num_trainers_(num_trainers),
      placement_(placement),
      num_workers_(placement == Placement::kColocated ? num_trainers : num_trainers + num_engines),
      lease_(lease) {
  NIBBLE_CHECK(placement == Placement::kSeparate || num_trainers == num_engines,
               "{} trainer ranks and {} engines in the same processes", num_trainers, num_engines);
}

Member Membership::join(Member candidate) {
  const std::lock_guard lock(mutex_);
  const auto count = static_cast<int>(entries_.size());
  if (count == num_workers_) {
    fail(ErrorCode::kFailedPrecondition, "the job has all its {} workers; {} is not needed", count,
         candidate.address);
  }
  candidate.role = count < num_trainers_ ? WorkerRole::kTrainer : WorkerRole::kRollout;
  if (placement_ == Placement::kColocated) candidate.role = WorkerRole::kBoth;
  candidate.index = count < num_trainers_ ? count : count - num_trainers_;
  candidate.id = fmt::format("{}/{}", role_name(candidate.role), candidate.index);
  entries_.push_back({candidate, SteadyClock::now(), false, false});
  changed_.notify_all();
  return candidate;
}

void Membership::renew(const std::string& id) {
  const std::lock_guard lock(mutex_);
  for (Entry& entry : entries_) {
    if (entry.member.id != id) continue;
    if (SteadyClock::now() - entry.renewed > lease_) {
      fail(ErrorCode::kFailedPrecondition, "the lease of {} has run out", id);
    }
    entry.renewed = SteadyClock::now();
    entry.serving = true;
    entry.told = stopped_;
    changed_.notify_all();
    return;
  }
  fail(ErrorCode::kFailedPrecondition, "'{}' is not a worker of this job", id);
}

void Membership::wait_complete(Deadline deadline) {
  std::unique_lock lock(mutex_);
  const auto wanted = static_cast<size_t>(num_workers_);
  const auto serving = [&] {
    return static_cast<size_t>(std::count_if(entries_.begin(), entries_.end(),
                                             [](const Entry& entry) { return entry.serving; }));
  };
  const bool complete =
      changed_.wait_until(lock, deadline.time(), [&] { return stopped_ || serving() == wanted; });
  if (stopped_) fail(ErrorCode::kCancelled, "stopped while waiting for workers");
  if (!complete) {
    fail(ErrorCode::kDeadlineExceeded, "only {} of {} workers joined in time", serving(), wanted);
  }
}

void Membership::check_leases() const {
  const std::lock_guard lock(mutex_);
  for (const Entry& entry : entries_) {
    if (SteadyClock::now() - entry.renewed <= lease_) continue;
    fail(ErrorCode::kUnavailable, "{} (pid {} on {}) has been silent for more than {} ms",
         entry.member.id, entry.member.pid, entry.member.host, lease_.count());
  }
}

std::string Membership::describe_process(int64_t pid) const {
  const std::lock_guard lock(mutex_);
  for (const Entry& entry : entries_) {
    if (entry.member.pid == pid) return fmt::format("{} (pid {})", entry.member.id, pid);
  }
  return fmt::format("a worker that had not joined yet (pid {})", pid);
}

std::vector<Member> Membership::members_but(WorkerRole other) const {
  const std::lock_guard lock(mutex_);
  std::vector<Member> members;
  for (const Entry& entry : entries_) {
    if (entry.member.role != other) members.push_back(entry.member);
  }
  return members;
}

std::vector<Member> Membership::trainers() const { return members_but(WorkerRole::kRollout); }
std::vector<Member> Membership::engines() const { return members_but(WorkerRole::kTrainer); }

std::vector<MemberView> Membership::views() const {
  const std::lock_guard lock(mutex_);
  const auto now = SteadyClock::now();
  std::vector<MemberView> views;
  for (const Entry& entry : entries_) {
    views.push_back({entry.member,
                     std::chrono::duration_cast<std::chrono::milliseconds>(now - entry.renewed),
                     entry.serving});
  }
  return views;
}

void Membership::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

bool Membership::wait_told(Deadline deadline) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline.time(), [&] {
    return std::all_of(entries_.begin(), entries_.end(), [&](const Entry& entry) {
      return entry.told || SteadyClock::now() - entry.renewed > lease_;
    });
  });
}

bool Membership::stopped() const {
  const std::lock_guard lock(mutex_);
  return stopped_;
}

}  // namespace nibble
