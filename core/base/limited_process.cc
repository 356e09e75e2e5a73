#include "core/base/limited_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/fail.h"

namespace nibble {
namespace {

constexpr int kCannotExecute = 127;  // as a shell says it

// Only async-signal-safe calls from here on to run_child: other threads of the parent may have held
// any lock at the time of the fork.

void set_limit(int resource, int64_t value) {
  const rlimit limit{static_cast<rlim_t>(value), static_cast<rlim_t>(value)};
  if (::setrlimit(static_cast<__rlimit_resource_t>(resource), &limit) != 0) ::_exit(126);
}

// A sanitizer's shadow memory takes terabytes of addresses.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kLimitsMemory = false;
#else
constexpr bool kLimitsMemory = true;
#endif

void set_limits(const ProcessLimits& limits) {
  if (kLimitsMemory && limits.max_memory_bytes > 0) {
    set_limit(RLIMIT_DATA, limits.max_memory_bytes);
  }
  if (kLimitsMemory && limits.max_address_space_bytes > 0) {
    set_limit(RLIMIT_AS, limits.max_address_space_bytes);
  }
  if (limits.max_cpu_seconds > 0) set_limit(RLIMIT_CPU, limits.max_cpu_seconds);
  set_limit(RLIMIT_NOFILE, limits.max_open_files);
  set_limit(RLIMIT_CORE, 0);
  set_limit(RLIMIT_FSIZE, 0);
}

void close_all_but_standard() {
  if (::close_range(3, ~0U, 0) == 0) return;
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  for (rlim_t fd = 3; fd < limit.rlim_cur; ++fd) ::close(static_cast<int>(fd));
}

[[noreturn]] void run_child(int socket, pid_t parent, char* const* argv,
                            const ProcessLimits& limits) {
  // The parent may have died before the request to die with it.
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || ::getppid() != parent) ::_exit(126);
  ::setsid();
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  // With RLIMIT_FSIZE a message to a stderr that is a file would be fatal; so it only fails.
  ::signal(SIGXFSZ, SIG_IGN);
  // A socket that is already 0 or 1 would keep its close-on-exec flag under dup2.
  const int copy = ::fcntl(socket, F_DUPFD, 3);
  if (copy < 0 || ::dup2(copy, STDIN_FILENO) < 0 || ::dup2(copy, STDOUT_FILENO) < 0) ::_exit(126);
  close_all_but_standard();
  set_limits(limits);
  char path[] = "PATH=/usr/local/bin:/usr/bin:/bin";
  char lang[] = "LANG=C.UTF-8";
  char* const environment[] = {path, lang, nullptr};
  ::execve(argv[0], argv, environment);
  ::_exit(kCannotExecute);
}

std::string describe_status(int status) {
  if (WIFEXITED(status) && WEXITSTATUS(status) == kCannotExecute) {
    return "exit code 127: the program cannot be executed";
  }
  if (WIFEXITED(status)) return fmt::format("exit code {}", WEXITSTATUS(status));
  return fmt::format("signal {}", WTERMSIG(status));
}

}  // namespace

LimitedProcess::LimitedProcess(const std::vector<std::string>& command,
                               const ProcessLimits& limits) {
  if (command.empty() || command[0].empty()) {
    fail(ErrorCode::kInvalidArgument, "the command of a child process is empty");
  }
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    fail(ErrorCode::kResourceExhausted, "cannot open a socket to '{}': {}", command[0],
         std::strerror(errno));
  }
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ == 0) run_child(ends[1], parent, argv.data(), limits);
  const int error = errno;
  ::close(ends[1]);
  if (pid_ < 0) {
    ::close(ends[0]);
    fail(ErrorCode::kResourceExhausted, "cannot start '{}': {}", command[0], std::strerror(error));
  }
  fd_ = ends[0];
  // O_NONBLOCK on our end only: the flag belongs to the open description.
  ::fcntl(fd_, F_SETFL, ::fcntl(fd_, F_GETFL) | O_NONBLOCK);
}

LimitedProcess::~LimitedProcess() {
  if (pid_ > 0) stop();
}

std::string LimitedProcess::stop() {
  const pid_t pid = std::exchange(pid_, -1);
  // By group for its children, by id for a child that has not reached setsid yet.
  ::kill(-pid, SIGKILL);
  ::kill(pid, SIGKILL);
  int status = 0;
  pid_t reaped = -1;
  do {
    reaped = ::waitpid(pid, &status, 0);
  } while (reaped < 0 && errno == EINTR);
  ::close(std::exchange(fd_, -1));
  return reaped == pid ? describe_status(status) : "an unknown cause";
}

}  // namespace nibble
