#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/background_task.h"

namespace nibble {

/// The worker processes of a job on this machine. Each dies with the thread that made this object
/// and is out of the terminal's process group, so that Ctrl-C reaches the supervisor alone. The
/// destructor kills and reaps what is left.
class ChildProcesses {
 public:
  /// Starts `count` copies of `command`. Throws Error{kInternal} if a process cannot be made.
  ChildProcesses(const std::vector<std::string>& command, int count);
  ~ChildProcesses();

  /// Calls `on_death(what)` once, from another thread, when a child ends before release().
  void watch(std::function<void(const std::string&)> on_death);
  /// Ends all children; for on_death.
  void kill_others();
  /// From now on children may end.
  void release();
  /// Waits up to `seconds` for all to end by themselves; the destructor kills the rest.
  void wait_all(int seconds);

 private:
  void kill_all();

  std::vector<pid_t> children_;  // constant after construction
  std::mutex mutex_;
  std::vector<bool> ended_;  // guarded by mutex_
  bool released_ = false;    // guarded by mutex_
  std::unique_ptr<BackgroundTask> watcher_;
};

}  // namespace nibble
