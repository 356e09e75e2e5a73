#include "cli/child_processes.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

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
  // A peer that dies is reported by the supervisor, in one sentence; torch's stores also warn.
  ::setenv("TORCH_CPP_LOG_LEVEL", "ERROR", 0);
  std::vector<char*> arguments;
  for (const std::string& argument : command) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  ::execv(arguments[0], arguments.data());
  ::_exit(127);
}

std::string describe_end(int status) {
  if (WIFSIGNALED(status)) {
    return fmt::format("was killed by signal {} ({})", WTERMSIG(status),
                       strsignal(WTERMSIG(status)));
  }
  return fmt::format("ended with exit code {}", WEXITSTATUS(status));
}

}  // namespace

ChildProcesses::ChildProcesses(const std::vector<std::string>& command, int count) {
  const pid_t self = ::getpid();
  for (int i = 0; i < count; ++i) {
    const pid_t child = ::fork();
    if (child == 0) become(command, self);
    if (child < 0) {
      const int error = errno;
      kill_all();
      fail(ErrorCode::kInternal, "cannot start a worker process: {}", std::strerror(error));
    }
    children_.push_back(child);
  }
}

ChildProcesses::~ChildProcesses() { kill_all(); }

std::optional<ChildProcesses::Death> ChildProcesses::find_death() {
  for (auto child = children_.begin(); child != children_.end(); ++child) {
    int status = 0;
    if (::waitpid(*child, &status, WNOHANG) != *child) continue;
    const Death death{*child, describe_end(status)};
    children_.erase(child);
    return death;
  }
  return std::nullopt;
}

void ChildProcesses::wait_all(Deadline deadline) {
  while (!children_.empty() && !deadline.expired()) {
    if (!find_death()) ::usleep(10'000);
  }
}

void ChildProcesses::kill_all() {
  for (const pid_t child : children_) ::kill(child, SIGKILL);
  for (const pid_t child : children_) ::waitpid(child, nullptr, 0);
  children_.clear();
}

}  // namespace nibble
