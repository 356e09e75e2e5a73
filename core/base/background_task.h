#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>

#include "core/base/clock.h"

namespace nibble {

/// One thread that stops by token and never loses an error. What `body` throws is kept and
/// rethrown by the next check(). The destructor asks the body to stop and joins.
class BackgroundTask {
 public:
  explicit BackgroundTask(std::function<void(std::stop_token)> body);
  /// Rethrows what the body threw, if it did. Any thread.
  void check() const;
  /// Waits until the body has ended, or for `deadline`; whether it has. Any thread.
  bool wait_until(Deadline deadline) const;
  /// Asks the body to stop; does not wait.
  void request_stop() { thread_.request_stop(); }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool ended_ = false;        // guarded by mutex_
  std::exception_ptr error_;  // guarded by mutex_
  std::jthread thread_;       // last member: joins before the others go away
};

}  // namespace nibble
