#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "core/base/clock.h"

namespace nibble {

/// One rank that runs in a process of its own.
struct ForkedRank {
  std::string name;  ///< "trainer 0": errors begin with it
  /// Meets the others at the store that listens on loopback's `port`.
  std::function<std::string(int port)> body;
};

/// Forks a process for each rank, tells `on_start` (null: nobody) their ids by rank, hosts the
/// store they meet at, and returns what the bodies returned, by rank. Throws the error of the rank
/// that failed first, with its code and name: Error{kUnavailable} if the process died,
/// Error{kDeadlineExceeded} if it still runs past `deadline`. No child is left in any case. To be
/// called before this process starts threads; the children die with it.
std::vector<std::string> run_forked(
    const std::vector<ForkedRank>& ranks, Deadline deadline,
    const std::function<void(const std::vector<pid_t>&)>& on_start = nullptr);

}  // namespace nibble
