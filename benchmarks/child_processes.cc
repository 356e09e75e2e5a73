#include "benchmarks/child_processes.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <thread>

#include "benchmarks/figure.h"
#include "core/base/clock.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

constexpr auto kPoll = 10ms;
// The others of a failed process have this long to fail by their own deadlines.
constexpr auto kGrace = 15s;

[[noreturn]] void run_child(const ChildProcess& child, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  int status = 0;
  try {
    child.body();
  } catch (const std::exception& error) {
    progress(child.name + ": " + error.what());
    status = 1;
  }
  fflush(nullptr);
  _exit(status);
}

struct Running {
  const ChildProcess* child = nullptr;
  pid_t pid = 0;
  bool has_ended = false;
};

// Whether a process that has ended did as it should.
bool ended_well(const ChildProcess& child, int status) {
  const bool well = child.is_lost ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL
                                  : WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (well) return true;
  if (WIFSIGNALED(status)) {
    progress(fmt::format("{} died of signal {}", child.name, WTERMSIG(status)));
  } else {
    progress(fmt::format("{} ended with code {}", child.name, WEXITSTATUS(status)));
  }
  return false;
}

}  // namespace

bool run_processes(const std::vector<ChildProcess>& children, std::chrono::seconds limit) {
  fflush(nullptr);
  const pid_t parent = getpid();
  std::vector<Running> running;
  for (const ChildProcess& child : children) {
    const pid_t pid = fork();
    if (pid == 0) run_child(child, parent);
    if (pid < 0) fail(ErrorCode::kResourceExhausted, "cannot fork '{}'", child.name);
    running.push_back({&child, pid});
  }
  bool good = true;
  Deadline deadline = Deadline::after(limit);
  const auto is_awaited = [](const Running& r) { return !r.has_ended && !r.child->is_lost; };
  while (std::any_of(running.begin(), running.end(), is_awaited) && !deadline.expired()) {
    for (Running& r : running) {
      int status = 0;
      if (r.has_ended || waitpid(r.pid, &status, WNOHANG) != r.pid) continue;
      r.has_ended = true;
      if (ended_well(*r.child, status)) continue;
      if (good)
        deadline =
            Deadline::after(std::min<std::chrono::milliseconds>(kGrace, deadline.remaining()));
      good = false;
    }
    std::this_thread::sleep_for(kPoll);
  }
  for (Running& r : running) {
    if (r.has_ended) continue;
    if (!r.child->is_lost) {
      progress(r.child->name + " hangs and is killed");
      good = false;
    }
    kill(r.pid, SIGKILL);
    waitpid(r.pid, nullptr, 0);
  }
  return good;
}

bool run_two_ranks(const std::string& name, const std::function<void(int rank)>& body,
                   std::chrono::seconds limit) {
  std::vector<ChildProcess> ranks;
  for (const int rank : {0, 1}) {
    ranks.push_back({name + " rank " + std::to_string(rank), [&body, rank] { body(rank); }});
  }
  return run_processes(ranks, limit);
}

}  // namespace nibble
