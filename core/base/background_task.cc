#include "core/base/background_task.h"

#include <utility>

namespace nibble {

BackgroundTask::BackgroundTask(std::function<void(std::stop_token)> body)
    : thread_([this, body = std::move(body)](const std::stop_token& stop) {
        try {
          body(stop);
        } catch (...) {
          const std::lock_guard lock(mutex_);
          error_ = std::current_exception();
        }
        const std::lock_guard lock(mutex_);
        ended_ = true;
        changed_.notify_all();
      }) {}

bool BackgroundTask::wait_until(Deadline deadline) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline.time(), [this] { return ended_; });
}

void BackgroundTask::check() const {
  const std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

}  // namespace nibble
