#include "core/base/task_thread.h"

namespace nibble {

TaskThread::TaskThread()
    : thread_([this](const std::stop_token& stop) {
        while (true) {
          std::function<void()> task;
          {
            std::unique_lock lock(mutex_);
            if (!wake_.wait(lock, stop, [this] { return !tasks_.empty(); })) return;
            if (stop.stop_requested()) return;
            task = std::move(tasks_.front());
            tasks_.pop_front();
          }
          task();
        }
      }) {}

TaskThread::~TaskThread() { thread_.request_stop(); }

void TaskThread::push(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
}

}  // namespace nibble
