#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "cli/child_processes.h"
#include "coordinator/membership.h"
#include "core/base/background_task.h"

namespace nibble {

/// Starts the workers of a job on this machine and watches them, and the leases of all workers,
/// until the job is over (Membership::stop). The first loss stops the job and kills the other
/// processes, because peers of a lost worker may wait for it: so every call to them fails now.
class JobWatch {
 public:
  /// Starts `count` copies of `command`; 0 if a cluster starts the workers. Borrows the membership.
  JobWatch(Membership& membership, const std::vector<std::string>& command, int count);
  JobWatch(const JobWatch&) = delete;
  JobWatch& operator=(const JobWatch&) = delete;
  /// Kills the workers that are left.
  ~JobWatch();

  /// Which worker was lost and how; waits for it to be noticed, which comes a moment after the
  /// first call to it has failed.
  std::optional<std::string> loss(std::chrono::milliseconds wait);
  /// For a job that is over: lets the workers end by themselves, up to `wait`.
  void finish(std::chrono::milliseconds wait);

 private:
  void watch(const std::stop_token& stop);
  std::optional<std::string> find_loss();

  Membership& membership_;
  ChildProcesses children_;  // used by the watcher while it runs
  std::mutex mutex_;
  std::condition_variable_any noticed_;
  std::optional<std::string> loss_;  // guarded by mutex_
  std::optional<BackgroundTask> watcher_;
};

}  // namespace nibble
