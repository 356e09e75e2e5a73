#pragma once

#include <filesystem>

namespace nibble {

/// Makes a run directory and keeps a second process out of it for as long as this object lives.
class RunDirectoryLock {
 public:
  /// Throws Error{kFailedPrecondition} if another process holds it, and what the system says
  /// (kInvalidArgument, or kResourceExhausted for a full disk) if it cannot be made or written.
  explicit RunDirectoryLock(const std::filesystem::path& directory);
  RunDirectoryLock(const RunDirectoryLock&) = delete;
  RunDirectoryLock& operator=(const RunDirectoryLock&) = delete;
  ~RunDirectoryLock();

 private:
  int fd_ = -1;
};

}  // namespace nibble
