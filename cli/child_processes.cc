#include "cli/child_processes.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>

#include "core/base/clock.h"
#include "core/base/fail.h"

namespace nibble {
namespace {

[[noreturn]] void become(const std::vector<std::string>& command, pid_t parent) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);  // the parent died before the line above
  // torch's OpenMP threads spin for milliseconds by default, which steals cores from the processes
  // whose turn it is; a few microseconds bridge the gaps inside a pass.
  ::setenv("GOMP_SPINCOUNT", "20000", 0);
  std::vector<char*> arguments;
  for (const std::string& argument : command) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  ::execv(arguments[0], arguments.data());
  ::_exit(127);
}

std::string death_text(pid_t pid, int status) {
  if (WIFSIGNALED(status)) {
    return fmt::format("worker process {} was killed by signal {} ({})", pid, WTERMSIG(status),
                       strsignal(WTERMSIG(status)));
  }
  return fmt::format("worker process {} ended with exit code {}", pid, WEXITSTATUS(status));
}

}  // namespace

ChildProcesses::ChildProcesses(const std::vector<std::string>& command, int count)
    : ended_(static_cast<size_t>(count), false) {
  const pid_t self = ::getpid();
  for (int i = 0; i < count; ++i) {
    const pid_t child = ::fork();
    if (child == 0) become(command, self);
    if (child < 0) {
      kill_all();
      fail(ErrorCode::kInternal, "cannot start a worker process: {}", std::strerror(errno));
    }
    children_.push_back(child);
  }
}

ChildProcesses::~ChildProcesses() {
  watcher_.reset();
  kill_all();
}

void ChildProcesses::kill_all() {
  for (size_t i = 0; i < children_.size(); ++i) {
    if (ended_[i]) continue;
    ::kill(children_[i], SIGKILL);
    int status = 0;
    ::waitpid(children_[i], &status, 0);
    ended_[i] = true;
  }
}

void ChildProcesses::watch(std::function<void(const std::string&)> on_death) {
  watcher_ = std::make_unique<BackgroundTask>(
      [this, on_death = std::move(on_death)](const std::stop_token& stop) {
        std::condition_variable_any tick;
        std::mutex local;
        while (!stop.stop_requested()) {
          for (size_t i = 0; i < children_.size(); ++i) {
            int status = 0;
            std::unique_lock lock(mutex_);
            if (ended_[i] || ::waitpid(children_[i], &status, WNOHANG) != children_[i]) continue;
            ended_[i] = true;
            if (released_) continue;
            lock.unlock();
            on_death(death_text(children_[i], status));
            return;
          }
          std::unique_lock lock(local);
          tick.wait_for(lock, stop, std::chrono::milliseconds(50), [] { return false; });
        }
      });
}

void ChildProcesses::kill_others() {
  const std::lock_guard lock(mutex_);
  kill_all();
}

void ChildProcesses::release() {
  const std::lock_guard lock(mutex_);
  released_ = true;
}

void ChildProcesses::wait_all(int seconds) {
  watcher_.reset();
  const Deadline deadline = Deadline::after(std::chrono::seconds(seconds));
  for (size_t i = 0; i < children_.size(); ++i) {
    while (!ended_[i] && !deadline.expired()) {
      int status = 0;
      if (::waitpid(children_[i], &status, WNOHANG) == children_[i]) {
        ended_[i] = true;
      } else {
        ::usleep(10'000);
      }
    }
  }
}

}  // namespace nibble
