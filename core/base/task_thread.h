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
#include "core/base/clock.h"

namespace nibble {

/// One thread that runs tasks in the order they come: where objects live that belong to a thread
/// (a trainer's autograd and OpenMP team, an engine, a child process). Any thread may call run()
/// and run_within().
class TaskThread {
 public:
  TaskThread();
  /// Waits for the running task; tasks that have not begun throw std::future_error at their
  /// callers.
  ~TaskThread();

  /// Runs `task` on the thread and returns its result; what it throws is thrown here.
  template <typename Task>
  std::invoke_result_t<Task&> run(Task task) {
    return push_and_wait(std::move(task), tasks_);
  }
  /// The same, but before tasks that wait, and within a running one where that calls let_in().
  template <typename Task>
  std::invoke_result_t<Task&> run_within(Task task) {
    return push_and_wait(std::move(task), short_tasks_);
  }

  /// On the thread, in a task that takes long: runs what run_within() has brought.
  void let_in();
  /// The same; if there is nothing, waits for it until `deadline`.
  void wait_and_let_in(Deadline deadline);

 private:
  using Queue = std::deque<std::function<void()>>;
  template <typename Task>
  std::invoke_result_t<Task&> push_and_wait(Task task, Queue& queue) {
    auto packaged =
        std::make_shared<std::packaged_task<std::invoke_result_t<Task&>()>>(std::move(task));
    auto result = packaged->get_future();
    push([packaged] { (*packaged)(); }, queue);
    return result.get();
  }
  void push(std::function<void()> task, Queue& queue);

  std::mutex mutex_;
  std::condition_variable_any wake_;
  Queue tasks_;            // guarded by mutex_
  Queue short_tasks_;      // guarded by mutex_; go first
  BackgroundTask thread_;  // last member
};

}  // namespace nibble
