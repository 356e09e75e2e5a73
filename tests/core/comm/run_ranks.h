#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <vector>

namespace nibble {

/// Runs body(rank) in `world` child processes and returns how many ended well. A child that throws,
/// dies or outlives `limit` does not count; the last are killed. Fork before any thread starts.
inline int run_ranks(int world, std::chrono::seconds limit, const std::function<void(int)>& body) {
  std::vector<pid_t> children;
  for (int rank = 0; rank < world; ++rank) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(static_cast<unsigned>(limit.count()));
      int status = 0;
      try {
        body(rank);
      } catch (const std::exception& error) {
        fprintf(stderr, "rank %d: %s\n", rank, error.what());
        status = 1;
      }
      fflush(nullptr);
      _exit(status);
    }
    children.push_back(child);
  }
  int good = 0;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) fprintf(stderr, "a rank died of signal %d\n", WTERMSIG(status));
    good += WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 1 : 0;
  }
  return good;
}

}  // namespace nibble
