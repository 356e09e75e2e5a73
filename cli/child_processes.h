#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "core/base/clock.h"

namespace nibble {

/// The worker processes of a job on this machine. Each dies with the thread that made this object
/// and is out of the terminal's process group, so that Ctrl-C reaches the supervisor alone. The
/// destructor kills and reaps what is left. One thread at a time.
class ChildProcesses {
 public:
  /// A child that ended, and how: "was killed by signal 9 (Killed)".
  struct Death {
    pid_t pid = 0;
    std::string how;
  };

  /// Starts `count` copies of `command`. Throws Error{kInternal} if a process cannot be made.
  ChildProcesses(const std::vector<std::string>& command, int count);
  ChildProcesses(const ChildProcesses&) = delete;
  ChildProcesses& operator=(const ChildProcesses&) = delete;
  ~ChildProcesses();

  /// Reaps one child that has ended since the last call, if any has.
  std::optional<Death> find_death();
  /// Waits for all to end by themselves, no longer than the deadline.
  void wait_all(Deadline deadline);
  /// Kills and reaps all that are left.
  void kill_all();

 private:
  std::vector<pid_t> children_;  // those not reaped
};

}  // namespace nibble
