#include "core/base/task_thread.h"

#include <utility>

namespace nibble {

TaskThread::TaskThread()
    : thread_([this](const std::stop_token& stop) {
        while (true) {
          std::function<void()> task;
          {
            std::unique_lock lock(mutex_);
            const auto has_work = [this] { return !tasks_.empty() || !short_tasks_.empty(); };
            if (!wake_.wait(lock, stop, has_work)) return;
            if (stop.stop_requested()) return;
            Queue& queue = short_tasks_.empty() ? tasks_ : short_tasks_;
            task = std::move(queue.front());
            queue.pop_front();
          }
          task();
        }
      }) {}

TaskThread::~TaskThread() { thread_.request_stop(); }

void TaskThread::push(std::function<void()> task, Queue& queue) {
  {
    const std::lock_guard lock(mutex_);
    queue.push_back(std::move(task));
  }
  wake_.notify_all();  // the thread may wait in either place
}

void TaskThread::let_in() {
  std::unique_lock lock(mutex_);
  if (short_tasks_.empty()) return;  // between nearly all steps: nothing is allocated
  const Queue brought = std::exchange(short_tasks_, {});
  lock.unlock();
  for (const auto& task : brought) task();
}

void TaskThread::wait_and_let_in(Deadline deadline) {
  {
    std::unique_lock lock(mutex_);
    wake_.wait_until(lock, deadline.time(), [this] { return !short_tasks_.empty(); });
  }
  let_in();
}

}  // namespace nibble
