#include "cli/forked_ranks.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <optional>

#include "core/base/env.h"
#include "core/base/fail.h"
#include "core/comm/process_group.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

// A lost rank makes its peers fail too, and theirs may be heard of first.
constexpr auto kGrace = 300ms;
constexpr char kReturned = '=';  // first byte of a report; else 'A' + error code

struct Pipe {
  int read_end = -1, write_end = -1;
};

Pipe make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    fail(ErrorCode::kResourceExhausted, "cannot make a pipe: {}", std::strerror(errno));
  }
  return {ends[0], ends[1]};
}

bool write_all(int file, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

[[noreturn]] void run_child(const ForkedRank& rank, int ports, int report, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);  // the parent died before the line above
  // A peer that dies is reported in one sentence; torch's stores also warn.
  set_env("TORCH_CPP_LOG_LEVEL", "ERROR");
  std::string text;
  try {
    int port = 0;
    if (::read(ports, &port, sizeof port) != sizeof port) ::_exit(1);
    text = kReturned + rank.body(port);
  } catch (const Error& error) {
    text = static_cast<char>('A' + static_cast<int>(error.code())) + std::string(error.what());
  } catch (const std::exception& error) {
    text =
        static_cast<char>('A' + static_cast<int>(ErrorCode::kInternal)) + std::string(error.what());
  }
  const bool told = write_all(report, text);
  std::fflush(nullptr);
  ::_exit(told ? 0 : 1);
}

struct Failure {
  std::string name;
  ErrorCode code = ErrorCode::kInternal;
  std::string what;
  bool is_death = false;
};

// The processes that were started; kills and reaps what is left.
class Children {
 public:
  explicit Children(const std::vector<ForkedRank>& ranks);
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;
  ~Children();

  void tell_port(int port) const {
    for (size_t i = 0; i < children_.size(); ++i) {
      const std::string_view bytes(reinterpret_cast<const char*>(&port), sizeof port);
      if (!write_all(ports_.write_end, bytes)) fail(ErrorCode::kInternal, "a pipe broke");
    }
  }
  std::vector<pid_t> processes() const {
    std::vector<pid_t> ids;
    for (const Child& child : children_) ids.push_back(child.pid);
    return ids;
  }
  std::vector<std::string> collect(Deadline deadline);

 private:
  struct Child {
    std::string name;
    pid_t pid = 0;
    int report = -1;  // -1: reaped
    std::string text;
  };
  bool any_left() const {
    return std::any_of(children_.begin(), children_.end(),
                       [](const Child& child) { return child.report >= 0; });
  }
  void read_some(Child& child);
  void reap(Child& child);

  Pipe ports_;
  std::vector<Child> children_;
  std::vector<Failure> failures_;
};

Children::Children(const std::vector<ForkedRank>& ranks) : ports_(make_pipe()) {
  std::fflush(nullptr);  // or children would print it again
  const pid_t parent = ::getpid();
  children_.reserve(ranks.size());
  for (const ForkedRank& rank : ranks) {
    const Pipe report = make_pipe();
    const pid_t pid = ::fork();
    if (pid == 0) run_child(rank, ports_.read_end, report.write_end, parent);
    ::close(report.write_end);
    children_.push_back({rank.name, pid, report.read_end, ""});
    if (pid < 0) {
      ::close(report.read_end);
      children_.pop_back();
      for (const Child& child : children_) ::kill(child.pid, SIGKILL);
      for (Child& child : children_) reap(child);
      fail(ErrorCode::kResourceExhausted, "cannot fork {}: {}", rank.name, std::strerror(errno));
    }
  }
}

Children::~Children() {
  for (const Child& child : children_) {
    if (child.report >= 0) ::kill(child.pid, SIGKILL);
  }
  for (Child& child : children_) {
    if (child.report < 0) continue;
    ::waitpid(child.pid, nullptr, 0);
    ::close(child.report);
  }
  ::close(ports_.read_end);
  ::close(ports_.write_end);
}

// The child has closed its end, so it has ended or is about to.
void Children::reap(Child& child) {
  int status = 0;
  ::waitpid(child.pid, &status, 0);
  ::close(child.report);
  child.report = -1;
  if (WIFSIGNALED(status)) {
    failures_.push_back(
        {child.name, ErrorCode::kUnavailable,
         fmt::format("was killed by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status))),
         true});
  } else if (WEXITSTATUS(status) != 0 || child.text.empty()) {
    failures_.push_back({child.name, ErrorCode::kUnavailable,
                         fmt::format("ended with exit code {}", WEXITSTATUS(status)), true});
  } else if (child.text[0] != kReturned) {
    failures_.push_back(
        {child.name, static_cast<ErrorCode>(child.text[0] - 'A'), child.text.substr(1), false});
  } else {
    child.text.erase(0, 1);
  }
}

void Children::read_some(Child& child) {
  std::array<char, 4096> buffer;
  const ssize_t count = ::read(child.report, buffer.data(), buffer.size());
  if (count < 0 && errno == EINTR) return;
  if (count > 0) {
    child.text.append(buffer.data(), static_cast<size_t>(count));
  } else {
    reap(child);
  }
}

std::vector<std::string> Children::collect(Deadline deadline) {
  while (any_left() && !deadline.expired()) {
    std::vector<pollfd> files;
    for (const Child& child : children_) files.push_back({child.report, POLLIN, 0});
    const auto wait = std::min<std::chrono::milliseconds>(deadline.remaining() + 1ms, 1000ms);
    if (::poll(files.data(), files.size(), static_cast<int>(wait.count())) <= 0) continue;
    const bool was_well = failures_.empty();
    for (size_t i = 0; i < files.size(); ++i) {
      if (files[i].revents != 0) read_some(children_[i]);
    }
    if (was_well && !failures_.empty()) {
      deadline = Deadline::after(std::min<std::chrono::milliseconds>(kGrace, deadline.remaining()));
    }
  }
  if (!failures_.empty()) {
    // What the peers of a lost rank say is an echo.
    const auto weight = [](const Failure& f) {
      return f.is_death ? 0 : f.code == ErrorCode::kUnavailable ? 2 : 1;
    };
    const Failure& cause = *std::min_element(
        failures_.begin(), failures_.end(),
        [&weight](const Failure& a, const Failure& b) { return weight(a) < weight(b); });
    fail(cause.code, "{} {}", cause.is_death ? cause.name : cause.name + ":", cause.what);
  }
  std::vector<std::string> texts;
  for (const Child& child : children_) {
    if (child.report >= 0) {
      fail(ErrorCode::kDeadlineExceeded, "{} still runs past the time limit and is killed",
           child.name);
    }
    texts.push_back(child.text);
  }
  return texts;
}

}  // namespace

std::vector<std::string> run_forked(
    const std::vector<ForkedRank>& ranks, Deadline deadline,
    const std::function<void(const std::vector<pid_t>&)>& on_start) {
  Children children(ranks);
  if (on_start) on_start(children.processes());
  const RendezvousServer server;  // starts a thread, so after the last fork
  children.tell_port(server.port());
  return children.collect(deadline);
}

}  // namespace nibble
