#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>

#include "core/base/background_task.h"

namespace nibble {

/// One thread that runs tasks in the order they come: where objects live that belong to a thread
/// (a trainer's autograd and OpenMP team, an engine, a child process). Any thread may call run().
class TaskThread {
 public:
  TaskThread();
  /// Waits for the running task; tasks that have not begun throw std::future_error at their
  /// callers.
  ~TaskThread();

  /// Runs `task` on the thread and returns its result; what it throws is thrown here.
  template <typename Task>
  std::invoke_result_t<Task&> run(Task task) {
    auto packaged =
        std::make_shared<std::packaged_task<std::invoke_result_t<Task&>()>>(std::move(task));
    auto result = packaged->get_future();
    push([packaged] { (*packaged)(); });
    return result.get();
  }

 private:
  void push(std::function<void()> task);

  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::deque<std::function<void()>> tasks_;  // guarded by mutex_
  BackgroundTask thread_;                    // last member
};

}  // namespace nibble
