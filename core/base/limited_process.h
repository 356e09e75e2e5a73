#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

struct ProcessLimits {
  int64_t max_memory_bytes = 1LL << 30;          ///< heap and private maps (RLIMIT_DATA); 0 = none
  int64_t max_address_space_bytes = 64LL << 30;  ///< libraries included (RLIMIT_AS); 0 = none
  int64_t max_cpu_seconds = 3600;                ///< over its whole life; 0 = none
  int64_t max_open_files = 32;
};

/// A child process in a session of its own whose standard input and output are one socket that we
/// hold, with limits, no core dumps, no writes to files, no other descriptors of ours, and nothing
/// in its environment but PATH and LANG. Its standard error is ours. One thread for its whole life:
/// the child is killed when the thread that started it ends (the kernel ties PR_SET_PDEATHSIG to
/// that thread). The destructor kills it and reaps it.
class LimitedProcess {
 public:
  /// Starts `command` (command[0] is a path). Throws Error{kInvalidArgument} for an empty command,
  /// Error{kResourceExhausted} if there is no process or descriptor left. A program that cannot be
  /// executed shows as a child that exits with 127.
  LimitedProcess(const std::vector<std::string>& command, const ProcessLimits& limits);
  LimitedProcess(const LimitedProcess&) = delete;
  LimitedProcess& operator=(const LimitedProcess&) = delete;
  ~LimitedProcess();

  /// Our end of the socket; non-blocking. Owned by this.
  int fd() const { return fd_; }
  pid_t pid() const { return pid_; }

  /// Kills the child with all it started, waits for its end and says how it ended: "exit code 1",
  /// "signal 9". Call once.
  std::string stop();

 private:
  int fd_ = -1;
  pid_t pid_ = -1;
};

}  // namespace nibble
