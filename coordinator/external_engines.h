#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/clock.h"

namespace nibble {

/// An engine that follows a job and is none of its workers, as it says itself.
struct ExternalEngine {
  std::string name;  ///< 1 to 64 letters, digits, '.', '_' or '-'
  std::string host;  ///< with `pid`: which process it is
  int64_t pid = 0;
  int64_t served_version = 0;  ///< 0: none
  std::string last_failure;    ///< why it has no newer one; cut at 500 bytes
};

/// A look at one.
struct ExternalEngineView {
  ExternalEngine engine;
  std::chrono::milliseconds heartbeat_age{0};  ///< since it last called
};

/// The external engines that follow a job. They come and go, and nobody waits for them: one that is
/// silent for a lease is forgotten, and known again when it calls again. Any thread may call any
/// method.
class ExternalEngines {
 public:
  /// At most `limit` at once.
  ExternalEngines(int limit, std::chrono::milliseconds lease) : limit_(limit), lease_(lease) {}

  /// Renews the lease of `engine`, which may be new, and keeps what it says. Throws
  /// Error{kInvalidArgument} for a name or version that is none, Error{kFailedPrecondition} if no
  /// more of them are permitted, or another process has the name.
  void follow(ExternalEngine engine);
  std::vector<ExternalEngineView> views();  ///< by name
  std::chrono::milliseconds lease() const { return lease_; }

 private:
  struct Entry {
    ExternalEngine engine;
    SteadyClock::time_point renewed;
  };
  void forget_silent();

  const int limit_;
  const std::chrono::milliseconds lease_;
  std::mutex mutex_;
  std::map<std::string, Entry> entries_;  // guarded by mutex_; by name
};

}  // namespace nibble
